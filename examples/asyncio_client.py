"""asyncio's streams, for a protocol of your own: python asyncio_client.py backend.example 443."""

import asyncio
import sys

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context


async def main(host: str, port: str) -> None:
    """One exchange; other tasks go on while the TPM signs."""
    reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(load_identity()))
    writer.write(f"GET /whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    if not answer.startswith("HTTP/1.1 200 "):
        sys.exit(answer.partition("\r\n")[0] or "the server has closed the connection")
    print(answer)


asyncio.run(main(*sys.argv[1:]))
