"""httpx (AsyncClient takes the same): python httpx_client.py https://backend.example/whoami."""

import sys

import httpx

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

with httpx.Client(verify=client_context(load_identity()), timeout=20) as client:
    print(client.get(sys.argv[1]).raise_for_status().json())
