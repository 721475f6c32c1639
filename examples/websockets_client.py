"""websockets (its asyncio client takes the same): python websockets_client.py wss://backend.example/."""

import sys

from websockets.sync.client import connect

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

with connect(sys.argv[1], ssl=client_context(load_identity())) as connection:
    connection.send("hello")
    print(connection.recv())
