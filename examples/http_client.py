"""The standard library's http.client: python http_client.py https://backend.example/whoami."""

import http.client
import sys
from urllib.parse import urlsplit

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

url = urlsplit(sys.argv[1])
connection = http.client.HTTPSConnection(url.netloc, context=client_context(load_identity()), timeout=20)
connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
answer = connection.getresponse()
if answer.status >= http.HTTPStatus.BAD_REQUEST:
    sys.exit(f"{answer.status} {answer.reason}")
print(answer.read().decode())
connection.close()
