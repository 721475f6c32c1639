"""Handshakes without end, while others hold sessions in the TPM: a TPM's contexts age, and many programs fail of that.

A saved session keeps a TPM from giving out more than 65,535 newer context numbers (TPM 2.0 Library part 1 rev 1.59,
30.4: TPM_RC_CONTEXT_GAP). TPM_MTLS_HANDSHAKES=70000 makes as many as it takes to see that.
"""

from __future__ import annotations

import gc
import os
import shutil
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from support.bound_keys import make_bound_key
from support.certificates import TestCa
from support.handshakes import handshake
from support.policies import pcr_policy
from support.resource_manager import running_resource_manager
from support.tpm_keys import make_key
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from support.tpm_keys import TpmKey

HANDSHAKES = int(os.environ.get("TPM_MTLS_HANDSHAKES", "150"))

pytestmark = pytest.mark.timeout(max(180, HANDSHAKES * 0.05))

RESOURCE_MANAGERS = ["none", "tpm2-abrmd"] if shutil.which("tpm2-abrmd") else ["none"]  # it is not part of the set-up

_HEADER = struct.Struct(">HII")
_NULL = bytes.fromhex("40000007")  # TPM_RH_NULL
_POLICY_SESSION = _NULL + _NULL + bytes.fromhex("0010") + bytes(16) + bytes.fromhex("0000 01 0010 000b")


def _key(kind: str, tpm: SimulatedTpm, folder: Path) -> TpmKey:
    if kind == "policy":
        return make_bound_key(tpm, folder, pcr_policy({16: "00" * 32}))
    return make_key(tpm, folder, handle=0x81000100 if kind == "persistent" else None)


def _server(ca: TestCa) -> ssl.SSLContext:
    server = server_context(ca.software_identity("localhost"))
    server.num_tickets = 0  # so that every handshake is a full one
    return server


@contextmanager
def _idle_program(tcti: str) -> Iterator[None]:
    """A program that has the TPM open, holds a session in it, and says nothing more."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    with subprocess.Popen(
        ["tpm2_send", "-T", tcti], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
    ) as process:
        session = _answer(process, 0x176, _POLICY_SESSION)[10:14]
        yield
        _answer(process, 0x165, session)  # it is still there: TPM2_FlushContext succeeds
        assert process.stdin
        process.stdin.close()
        process.wait(20)


def _answer(process: subprocess.Popen[bytes], command: int, content: bytes) -> bytes:
    assert process.stdin
    assert process.stdout
    process.stdin.write(_HEADER.pack(0x8001, _HEADER.size + len(content), command) + content)
    response = process.stdout.read(4096)
    assert _HEADER.unpack_from(response)[2] == 0
    return response


@pytest.mark.parametrize("manager", RESOURCE_MANAGERS)
@pytest.mark.parametrize("kind", ["persistent", "file", "policy"])
def test_handshakes_in_a_row_while_others_hold_sessions(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, manager: str
) -> None:
    key = _key(kind, tpm, tmp_path)
    ca = TestCa(tmp_path)
    server = _server(ca)
    with ExitStack() as stack:
        if manager == "none":
            tcti = tpm.tcti
            # tpm2_startauthsession saves its session when it ends, and leaves it to the next tool
            tpm.tool("tpm2_startauthsession", "-S", "idle.ctx", cwd=tmp_path)
            assert len(tpm.handles("saved-session")) == 1
            stack.callback(tpm.tool, "tpm2_flushcontext", "idle.ctx", cwd=tmp_path)
        else:
            tcti = stack.enter_context(running_resource_manager(tpm, tmp_path / "manager", monkeypatch))
        stack.enter_context(_idle_program(tcti))
        client = client_context(ca.identity(key.reference, key.public_key, "device-1"), tcti=tcti, relay="always")
        for _ in range(HANDSHAKES):
            assert handshake(client, server).client == "device-1"
        assert server.session_stats()["hits"] == 0, "all were full ones"
        del client
        gc.collect()
    assert tpm.handles("transient") == []
    assert tpm.handles("loaded-session") == []
