"""gunicorn with the key in the TPM: gunicorn --config gunicorn_server.py --bind 127.0.0.1:8443 shop:application."""

import functools
from pathlib import Path

from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.tls import IdentityContext, server_context

IDENTITY = Identity(
    PersistentHandle(0x81000101), Path("/etc/tpm-mtls/server.cert.pem"), Path("/var/lib/tpm-mtls/ca.cert.pem")
)
certfile = str(IDENTITY.certificate)  # without one, gunicorn does not use TLS


@functools.cache
def _context() -> IdentityContext:
    return server_context(IDENTITY)


def ssl_context(_: object, __: object) -> IdentityContext:
    """What gunicorn's workers ask for at every connection: one context for each worker."""
    return _context()
