#!/bin/sh
# openssl_client.sh backend.example:443; type the request, then an empty line
set -eu
eval "$(tpm-mtls openssl-env)"
cd /var/lib/tpm-mtls
exec openssl s_client -connect "$1" -verify_hostname "${1%:*}" -verify_return_error -CAfile ca.cert.pem \
  -cert device.cert.pem -cert_chain device.cert.pem -key device.key.pem -quiet
