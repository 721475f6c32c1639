"""The mutual-TLS client: a connection in one call.

    from tpm_mtls.identity import load_identity
    from tpm_mtls_client import connect

    with connect(load_identity(), base_url="https://backend.example:8443") as client:
        print(client.get("/whoami").json())

Errors are those of `tpm_mtls.errors`.
"""

from tpm_mtls_client.client import Client, connect
from tpm_mtls_client.response import Response
from tpm_mtls_client.timing import Timeout

__all__ = ["Client", "Response", "Timeout", "connect"]
