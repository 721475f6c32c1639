#!/bin/sh
# curl.sh https://backend.example/whoami
set -eu
eval "$(tpm-mtls openssl-env)"
cd /var/lib/tpm-mtls
# --capath: without, Debian's curl trusts the CAs in /etc/ssl/certs, too
exec curl --silent --show-error --fail --cacert ca.cert.pem --capath /dev/null \
  --cert device.cert.pem --key device.key.pem "$1"
