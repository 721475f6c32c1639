"""uvicorn with the server's key in the TPM, for any ASGI application: python uvicorn_server.py 8443."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn

from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.tls import server_context

FOLDER = Path("/etc/tpm-mtls")
IDENTITY = Identity(PersistentHandle(0x81000101), FOLDER / "server.cert.pem", FOLDER / "ca.cert.pem")


async def application(scope: dict[str, object], _: object, send: Callable[..., Awaitable[None]]) -> None:
    """Yours, or of any framework."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"hello, device\n"})


uvicorn.run(application, port=int(sys.argv[1]), ssl_context_factory=lambda *_: server_context(IDENTITY))
