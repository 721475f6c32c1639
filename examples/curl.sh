#!/bin/sh
# curl.sh https://backend.example/whoami
set -eu
eval "$(tpm-mtls openssl-env)"
cd /var/lib/tpm-mtls
exec curl --silent --show-error --fail --cacert ca.cert.pem --cert device.cert.pem --key device.key.pem "$1"
