const net = require('net');
function setSecret(name, value) {
return new Promise((resolve, reject) => {
const client = net.createConnection('/run/tpmd.sock', () => {
const request = JSON.stringify({ action: 'set', name, value });
client.write(request);
});
let response = '';
client.on('data', (data) => { response += data.toString(); });
client.on('end', () => resolve(JSON.parse(response)));
client.on('error', reject);
});
}
function getSecret(name) {
return new Promise((resolve, reject) => {
const client = net.createConnection('/run/tpmd.sock', () => {
const request = JSON.stringify({ action: 'get', name });
client.write(request);
});
let response = '';
client.on('data', (data) => { response += data.toString(); });
client.on('end', () => {
const result = JSON.parse(response);
resolve(result.value);
});
client.on('error', reject);
});
}
function deleteSecret(name) {
return new Promise((resolve, reject) => {
const client = net.createConnection('/run/tpmd.sock', () => {
const request = JSON.stringify({ action: 'del', name });
client.write(request);
});
let response = '';
client.on('data', (data) => { response += data.toString(); });
client.on('end', () => resolve(JSON.parse(response)));
client.on('error', reject);
});
}
