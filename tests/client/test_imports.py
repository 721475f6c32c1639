"""A TLS program stays small: what making a connection must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.https_server import MakeServer
    from tpm_mtls.identity import Identity

HEAVY = {"aiohttp", "asyncio", "cryptography", "OpenSSL", "rich", "sqlalchemy", "tpm2_pytss", "cffi"}

COMMAND = """
import json, sys
from tpm_mtls.cli import run
status = run(sys.argv[1:])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
sys.exit(status)
"""


def _modules(*arguments: str, program: str) -> set[str]:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stderr.splitlines()[-1]))


def _identity_options(device: Identity) -> list[str]:
    return ["--cert", str(device.certificate), "--key", str(device.key), "--trust", str(device.trust)]


def test_a_request_of_the_command_line_imports_nothing_heavy(serve: MakeServer, device: Identity) -> None:
    modules = _modules("client", "get", serve().url(), *_identity_options(device), program=COMMAND)
    assert {"ssl", "urllib3", "click", "tpm_mtls_client"} <= modules
    assert modules & HEAVY == set()


def test_the_api_imports_nothing_heavy(serve: MakeServer, device: Identity) -> None:
    program = """
import json, sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls_client import connect
key, certificate, trust, url = sys.argv[1:]
with connect(Identity(key=parse_key_reference(key), certificate=Path(certificate), trust=Path(trust))) as client:
    assert client.get(url).json()["device"] == "device-1"
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
    arguments = (str(device.key), str(device.certificate), str(device.trust), serve().url())
    assert _modules(*arguments, program=program) & (HEAVY | {"click"}) == set()


def test_help_imports_no_tls() -> None:
    modules = _modules("client", "get", "--help", program=COMMAND)
    assert modules & (HEAVY | {"ssl", "urllib3"}) == set()
