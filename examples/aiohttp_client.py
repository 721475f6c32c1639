"""aiohttp: python aiohttp_client.py https://backend.example/whoami."""

import asyncio
import sys

import aiohttp

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context


async def main(url: str) -> None:
    """One request; other tasks go on while the TPM signs."""
    connector = aiohttp.TCPConnector(ssl=client_context(load_identity()))
    async with aiohttp.ClientSession(connector=connector, raise_for_status=True) as session, session.get(url) as answer:
        print(await answer.json())


asyncio.run(main(sys.argv[1]))
