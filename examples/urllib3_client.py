"""urllib3: python urllib3_client.py https://backend.example/whoami."""

import sys
from http import HTTPStatus

import urllib3

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

with urllib3.PoolManager(ssl_context=client_context(load_identity())) as pool:
    answer = pool.request("GET", sys.argv[1], timeout=20)
    if answer.status >= HTTPStatus.BAD_REQUEST:
        sys.exit(f"{answer.status} {answer.reason}")
    print(answer.json())
