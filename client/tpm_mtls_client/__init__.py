"""The mutual-TLS client: a connection in one call.

    from tpm_mtls.identity import load_identity
    from tpm_mtls_client import connect

    with connect(load_identity(), base_url="https://backend.example:8443") as client:
        print(client.get("/whoami").json())

Errors are those of `tpm_mtls.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpm_mtls_client.client import Client, connect
    from tpm_mtls_client.response import Response
    from tpm_mtls_client.timing import Timeout

__all__ = ["Client", "Response", "Timeout", "connect"]

_MODULES = {"Client": "client", "Response": "response", "Timeout": "timing", "connect": "client"}


def __getattr__(name: str) -> object:
    """Imports what is asked for: ``tpm-mtls --help`` asks for nothing, and need not wait for ssl and urllib3."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
