"""requests, which takes a context through an adapter: python requests_client.py https://backend.example/whoami."""

import sys

import requests
from requests.adapters import HTTPAdapter

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

IDENTITY = load_identity()


class TpmAdapter(HTTPAdapter):
    """Every connection with the device's identity."""

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        """Gives urllib3 the context."""
        super().init_poolmanager(*arguments, ssl_context=client_context(IDENTITY), **options)


with requests.Session() as session:
    session.mount("https://", TpmAdapter())
    # verify= in each request: without, requests adds the web's CAs or $REQUESTS_CA_BUNDLE, which the context refuses
    answer = session.get(sys.argv[1], verify=str(IDENTITY.trust), timeout=20)
    answer.raise_for_status()
    print(answer.json())
