#!/bin/sh
# openssl_server.sh 127.0.0.1:8443; answers with what it knows about the connection
set -eu
eval "$(tpm-mtls openssl-env)"
exec openssl s_server -accept "$1" -Verify 3 -verify_return_error -CAfile /etc/tpm-mtls/ca.cert.pem \
  -cert /etc/tpm-mtls/server.cert.pem -cert_chain /etc/tpm-mtls/server.cert.pem -key handle:0x81000101 -www
