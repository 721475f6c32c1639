"""gunicorn with the key in the TPM: gunicorn --config gunicorn_server.py --bind 127.0.0.1:8443 shop:application."""

import functools
from pathlib import Path

from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.tls import IdentityContext, server_context

FOLDER = Path("/etc/tpm-mtls")
IDENTITY = Identity(PersistentHandle(0x81000101), FOLDER / "server.cert.pem", FOLDER / "ca.cert.pem")
certfile = str(IDENTITY.certificate)  # without one, gunicorn does not use TLS


@functools.cache
def _context() -> IdentityContext:
    return server_context(IDENTITY)


def post_worker_init(_: object) -> None:
    """Loads the key when a worker begins: gunicorn ends with the reason if it cannot."""
    _context()


def ssl_context(_: object, __: object) -> IdentityContext:
    """What gunicorn's workers ask for at every connection: one context for each worker."""
    return _context()
