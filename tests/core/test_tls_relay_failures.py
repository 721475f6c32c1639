"""What a TLS program sees when the relay, or the TPM behind it, fails: an error with a name, in time, and no leak."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.handshakes import attempt, handshake
from support.https_server import HttpsServer
from support.relay_children import relays
from support.tpm_keys import make_key
from support.tpm_proxy import TpmProxy
from tpm_mtls.errors import KeyGoneError, TpmMtlsError, TpmUnavailableError
from tpm_mtls.relay import relay_tcti
from tpm_mtls.tls import client_context, server_context
from tpm_mtls_client import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity
    from tpm_mtls.tls import IdentityContext

SIGN = 0x15D
HANDLE = 0x81000100


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def identity(ca: TestCa, tpm: SimulatedTpm) -> Identity:
    key = make_key(tpm, ca.folder)
    return ca.identity(key.reference, key.public_key, "device-1")


@pytest.fixture
def persistent(ca: TestCa, tpm: SimulatedTpm) -> Identity:
    """For a TPM behind a program: the relay takes that for a resource manager, which leaves nothing of a lost user."""
    key = make_key(tpm, ca.folder, handle=HANDLE)
    return ca.identity(key.reference, key.public_key, "device-1")


@pytest.fixture
def backend(ca: TestCa) -> IdentityContext:
    context = server_context(ca.software_identity("localhost"))
    context.num_tickets = 0  # every handshake is a full one
    return context


def kill_relays(known: set[int]) -> None:
    """Kills what this process has started since it had ``known``, and sees it dead."""
    for pid in relays() - known:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while pid in relays():
            assert time.monotonic() < deadline
            time.sleep(0.005)


def cause_of(client: IdentityContext, server: IdentityContext) -> TpmMtlsError:
    _, error, _ = attempt(client, server)
    assert isinstance(error, ssl.SSLError)
    cause = error.__cause__
    assert isinstance(cause, TpmMtlsError)
    try:
        return cause
    finally:
        del error, cause


@pytest.mark.parametrize("handle", [None, HANDLE], ids=["file", "handle"])
def test_a_killed_relay_costs_one_handshake_and_leaves_nothing(
    handle: int | None, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    key = make_key(tpm, ca.folder, handle=handle)
    known = relays()
    client = client_context(ca.identity(key.reference, key.public_key, "device-1"), tcti=tpm.tcti, relay="always")
    assert handshake(client, backend).client == "device-1"
    for _ in range(2):
        kill_relays(known)
        gone = cause_of(client, backend)
        assert isinstance(gone, KeyGoneError)
        assert gone.hint
        assert handshake(client, backend).client == "device-1", "the context has loaded it again, through a new relay"
    assert client.diagnose() is None


def test_the_client_recovers_by_itself(
    identity: Identity, backend: IdentityContext, tpm: SimulatedTpm, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that a program keeps do not keep the key: an error's traceback leads to its context."""
    caplog.set_level(logging.DEBUG, logger="tpm_mtls")
    known = relays()
    with HttpsServer(backend) as server, connect(identity, tcti=tpm.tcti, relay="always") as client:
        assert client.get(server.url()).status == 200
        server.drop_connections()
        kill_relays(known)
        assert client.get(server.url()).status == 200
        assert len(server.requests) == 2
    del client
    gc.collect()
    assert {each.name for each in caplog.records} == {"tpm_mtls.tls.own_key", "tpm_mtls.client"}
    assert_empty(tpm)


def test_a_relay_that_dies_in_the_middle_of_a_signature(
    persistent: Identity, backend: IdentityContext, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(SIGN, signal.SIGKILL)  # its parent, which is the relay
    client = client_context(persistent, tcti=proxy.tcti, relay="always")
    for _ in range(2):  # the relay with which the key is loaded again is killed, too
        assert isinstance(cause_of(client, backend), KeyGoneError | TpmUnavailableError)
        (tmp_path / "proxy.json").write_text("{}")
    assert handshake(client, backend).client == "device-1"


BAD_TPMS = {
    "garbage": "cat /dev/zero",
    "short": r"printf '\200\001\0\0\0\144'; sleep 60",
    "cut off": r"printf '\200\001\0\0\0\144'",
    "never": "exec sleep 60",
    "closed": "true",
    "late": "sleep 2; cat",
    "missing": "exec /nonexistent/program",
}


@pytest.mark.parametrize("kind", list(BAD_TPMS))
def test_a_tpm_that_answers_garbage_or_not_at_all_is_named_in_time(kind: str, ca: TestCa, tpm: SimulatedTpm) -> None:
    key = make_key(tpm, ca.folder)
    identity = ca.identity(key.reference, key.public_key, "device-1")
    bad = f"cmd:{BAD_TPMS[kind]}"
    through = relay_tcti(bad, options=["--time-limit", "0.5"])
    started = time.monotonic()
    with pytest.raises(TpmUnavailableError) as found:
        client_context(identity, tcti=through, relay="never")
    assert time.monotonic() - started < 15
    assert found.value.tcti == bad
    assert bad in str(found.value), "it names the TPM, not the relay's command line"
    assert found.value.hint


@pytest.mark.parametrize("answer", [b"", b"\x80\x01", b"\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00", bytes(300)])
def test_a_signature_that_is_answered_with_garbage_is_an_error_of_the_tpm(
    answer: bytes, persistent: Identity, backend: IdentityContext, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    tcti = spoiling(tpm, tmp_path, answer)
    client = client_context(persistent, tcti=relay_tcti(tcti, options=["--time-limit", "1"]), relay="never")
    (tmp_path / "spoil").touch()
    found = cause_of(client, backend)
    assert isinstance(found, TpmMtlsError)
    assert found.hint
    (tmp_path / "spoil").unlink()
    attempt(client, backend)  # loads the key again, if it was given up
    assert handshake(client, backend).client == "device-1"


SPOILER = """
import socket, struct, sys
from pathlib import Path
port, spoil, answer = int(sys.argv[1]), Path(sys.argv[2]), bytes.fromhex(sys.argv[3])
while len(header := sys.stdin.buffer.read(10)) == 10:
    _, size, code = struct.unpack(">HII", header)
    command = header + sys.stdin.buffer.read(size - 10)
    if code == 0x15D and spoil.exists():
        response = answer
    else:
        with socket.create_connection(("127.0.0.1", port)) as tpm, tpm.makefile("rb") as answers:
            tpm.sendall(command)
            head = answers.read(10)
            response = head + answers.read(struct.unpack(">HII", head)[1] - 10)
    sys.stdout.buffer.write(response)
    sys.stdout.buffer.flush()
"""


def spoiling(tpm: SimulatedTpm, folder: Path, answer: bytes) -> str:
    """The TPM through a program that answers TPM2_Sign with ``answer`` as long as the file ``spoil`` is there."""
    program = folder / "spoiler.py"
    program.write_text(SPOILER)
    port = tpm.tcti.rpartition("=")[2]
    words = [sys.executable, "-I", "-S", str(program), port, str(folder / "spoil"), answer.hex() or "00"]
    if not answer:
        program.write_text(SPOILER.replace("response = answer", "break"))
    return f"cmd:exec {shlex.join(words)}"


def test_a_context_that_was_made_in_a_thread_outlives_it(
    identity: Identity, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    """libtss2 has its program end with the thread that started it."""
    made: list[IdentityContext] = []
    thread = threading.Thread(target=lambda: made.append(client_context(identity, tcti=tpm.tcti, relay="always")))
    thread.start()
    thread.join()
    time.sleep(0.05)  # for a signal to arrive
    assert handshake(made[0], backend).client == "device-1"


def test_an_error_in_a_thread_is_raised_there(identity: Identity, tpm: SimulatedTpm) -> None:
    raised: list[TpmMtlsError] = []

    def make() -> None:
        try:
            client_context(identity, tcti="cmd:true", relay="never")
        except TpmMtlsError as error:
            raised.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert isinstance(raised.pop(), TpmUnavailableError)
    assert tpm.handles("transient") == []


def test_threads_share_one_relay(identity: Identity, backend: IdentityContext, tpm: SimulatedTpm) -> None:
    known = relays()
    client = client_context(identity, tcti=tpm.tcti, relay="always")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                handshake(client, backend)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(relays() - known) == 1


PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.handshakes import handshake
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context, server_context
def identity(key, certificate, trust):
    return Identity(parse_key_reference(key), Path(certificate), Path(trust))
client = client_context(identity(*sys.argv[2:5]), tcti=sys.argv[8], relay="always")
server = server_context(identity(*sys.argv[5:8]))
server.num_tickets = 0
"""


def program(identity: Identity, ca: TestCa, tpm: SimulatedTpm, work: str) -> subprocess.Popen[str]:
    """A Python program with a ``client`` whose key is used through the relay, a ``server``, and ``handshake``."""
    files = [
        str(part)
        for each in (identity, ca.software_identity("localhost"))
        for part in (each.key, each.certificate, each.trust)
    ]
    command = [sys.executable, "-c", PROGRAM + work, str(Path(__file__).parents[1]), *files, tpm.tcti]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed; it must have ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_two_processes_at_once(identity: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    work = "for _ in range(10): assert handshake(client, server).client == 'device-1'\nprint('done')"
    for each in [program(identity, ca, tpm, work) for _ in range(2)]:
        assert finished(each) == "done\n"


def test_a_forked_child_has_a_relay_of_its_own(identity: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    work = """
handshake(client, server)
child = os.fork()
handshake(client, server)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    handshake(client, server)
    print("done")
"""
    assert finished(program(identity, ca, tpm, work)) == "done\n"
    assert_empty(tpm)


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"],
    ids=["end", "exit", "_exit", "kill"],
)
def test_however_a_program_ends_its_relay_ends_and_leaves_nothing(
    end: str, identity: Identity, ca: TestCa, tpm: SimulatedTpm
) -> None:
    """Without the relay, `os._exit` and SIGKILL leave the key in the TPM."""
    work = f"handshake(client, server)\nprint(os.getpid(), flush=True)\nsys.stdin.readline()\n{end}"
    process = program(identity, ca, tpm, work)
    assert process.stdout is not None
    assert process.stdin is not None
    pid = int(process.stdout.readline())
    (relay,) = relays(pid)
    assert tpm.handles("transient") != []
    process.communicate("\n", timeout=60)
    gone(lambda: Path(f"/proc/{relay}/cmdline").exists() and b"relay" in Path(f"/proc/{relay}/cmdline").read_bytes())
    assert_empty(tpm)


def gone(is_there: Callable[[], bool]) -> None:
    """Waits until something is no longer there."""
    deadline = time.monotonic() + 10
    while is_there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_empty(tpm: SimulatedTpm) -> None:
    assert tpm.handles("transient") == []
    assert tpm.handles("loaded-session") == []
