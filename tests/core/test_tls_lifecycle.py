"""What happens to a loaded key: reload, TPM restart, garbage collection, exit, fork, threads, processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.handshakes import attempt, handshake
from support.tpm_keys import make_key
from support.tpm_proxy import TpmProxy
from tpm_mtls.errors import (
    CertificateMismatchError,
    CredentialError,
    HandleNotFoundError,
    KeyGoneError,
    OpensslError,
    TpmUnavailableError,
)
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import IdentityContext, client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

# CPython 3.12 and newer warn about forks beside threads, and pytest-xdist has some
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
HANDLE = 0x81000100
FLUSH_CONTEXT = 0x165
TESTS = Path(__file__).parents[1]


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server(ca: TestCa) -> IdentityContext:
    return server_context(ca.software_identity("localhost"), minimum_version=V1_2)


@pytest.fixture
def tss2(tpm: SimulatedTpm, ca: TestCa) -> Identity:
    key = make_key(tpm, ca.folder)
    return ca.identity(key.reference, key.public_key, "device")


@pytest.fixture
def persistent(tpm: SimulatedTpm, ca: TestCa) -> Identity:
    key = make_key(tpm, ca.folder, handle=HANDLE)
    return ca.identity(key.reference, key.public_key, "device")


# --- reload ---


@pytest.mark.parametrize("kind", ["tss2", "persistent", "software"])
def test_reload_says_why_the_present_certificate_stays(
    kind: str, ca: TestCa, server: IdentityContext, tpm: SimulatedTpm, request: pytest.FixtureRequest
) -> None:
    identity = ca.software_identity("device") if kind == "software" else request.getfixturevalue(kind)
    client = client_context(identity, tcti=tpm.tcti)
    identity.certificate.write_bytes(ca.certify(_public_key(identity), "renewed").read_bytes())
    client.reload()
    renewed = identity.certificate.read_bytes()
    assert handshake(client, server).client == "renewed"

    identity.certificate.write_bytes(b"")
    with pytest.raises(CredentialError, match="holds no certificate"):
        client.reload()
    identity.certificate.write_bytes(ca.software_identity("other").certificate.read_bytes())
    with pytest.raises(CertificateMismatchError, match="does not belong to the key"):
        client.reload()
    assert handshake(client, server).client == "renewed"
    identity.certificate.write_bytes(renewed)
    client.reload()
    assert handshake(client, server).client == "renewed"


def _public_key(identity: Identity) -> object:
    from cryptography import x509

    return x509.load_pem_x509_certificate(identity.certificate.read_bytes()).public_key()


def test_many_reloads_need_no_more_than_one_slot(tss2: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    for _ in range(6):
        client.reload()
        assert len(tpm.handles("transient")) == 1
    assert handshake(client, server).client == "device"


def test_an_existing_connection_outlives_a_reload(tss2: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    near, far = socket.socketpair()
    thread = threading.Thread(target=_echo_once, args=(server, far))
    thread.start()
    with client.wrap_socket(near, server_hostname="localhost") as tls:
        client.reload()
        del client
        tls.sendall(b"still there?")
        assert tls.recv(20) == b"still there?"
    thread.join()


def _echo_once(server: ssl.SSLContext, far: socket.socket) -> None:
    with server.wrap_socket(far, server_side=True) as tls:
        tls.sendall(tls.recv(20))
        with contextlib.suppress(OSError):  # the client closes, and OpenSSL 3.5 answers that
            tls.recv(1)


def test_a_key_of_another_type_needs_a_new_context(ca: TestCa, tpm: SimulatedTpm, server: IdentityContext) -> None:
    """OpenSSL would otherwise keep both, and the peer choose."""
    first, second = make_key(tpm, ca.folder), make_key(tpm, ca.folder, "rsa-2048")
    identity = ca.identity(first.reference, first.public_key, "device")
    client = client_context(identity, tcti=tpm.tcti)
    assert isinstance(first.reference, KeyFile)
    first.reference.path.write_bytes(Path(str(second.reference)).read_bytes())
    identity.certificate.write_bytes(ca.certify(second.public_key, "device").read_bytes())
    with pytest.raises(CredentialError, match="of another type"):
        client.reload()
    assert handshake(client, server).client == "device"
    del client
    assert handshake(client_context(identity, tcti=tpm.tcti), server).client == "device"


# --- a TPM that restarts ---


@pytest.mark.parametrize("version", [V1_3, V1_2])
@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_after_a_tpm_restart_the_next_connection_works(
    algorithm: str, version: ssl.TLSVersion, ca: TestCa, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    key = make_key(tpm, ca.folder, algorithm)
    identity = ca.identity(key.reference, key.public_key, "device")
    client = client_context(identity, tcti=tpm.tcti, minimum_version=version)
    client.maximum_version = version
    assert handshake(client, server).client == "device"
    assert client.diagnose() is None
    tpm.restart()
    with pytest.raises(ssl.SSLError, match="EVP lib") as caught:
        handshake(client, server)
    assert isinstance(caught.value.__cause__, KeyGoneError)
    assert caught.value.__cause__.rc == 0x910
    assert handshake(client, server).client == "device"


def test_the_server_recovers_too(tss2: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    server = server_context(tss2, tcti=tpm.tcti)
    client = client_context(ca.software_identity("me"))
    tpm.restart()
    _, client_error, server_error = attempt(client, server, name="device")
    assert isinstance(client_error, ssl.SSLError)
    assert isinstance(server_error, ssl.SSLError)
    assert isinstance(server_error.__cause__, KeyGoneError)
    assert handshake(client, server, name="device").client == "me"


def test_asyncio_recovers_too(tss2: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    tpm.restart()

    async def connect(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        writer.close()
        await writer.wait_closed()

    async def exchange() -> BaseException | None:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            with pytest.raises(ssl.SSLError, match="EVP lib") as caught:
                await connect(port)
            await connect(port)
        return caught.value.__cause__

    assert isinstance(asyncio.run(exchange()), KeyGoneError)


def test_diagnose_and_reload_by_hand(tss2: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    tpm.restart()
    assert isinstance(client.diagnose(), KeyGoneError)
    client.reload()
    assert client.diagnose() is None
    assert handshake(client, server).client == "device"


def test_another_key_in_the_place_of_a_lost_one(
    tss2: Identity, ca: TestCa, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    """After a restart the handle may name another program's key: its signatures must not count as ours."""
    client = client_context(tss2, tcti=tpm.tcti)
    tpm.restart()
    make_key(tpm, ca.folder)
    name = max(path.stem for path in ca.folder.glob("*.pub"))
    tpm.tool(
        *("tpm2_load", "-C", "0x81000001", "-u", f"{name}.pub", "-r", f"{name}.priv", "-c", "other.ctx"),
        cwd=ca.folder,
    )
    error = client.diagnose()
    assert isinstance(error, KeyGoneError)
    assert "another one is in its place" in str(error)
    client.reload()
    assert handshake(client, server).client == "device"
    assert len(tpm.handles("transient")) == 2  # the other program's was not flushed
    del client
    tpm.flush()


def test_threads_that_fail_together_all_learn_the_cause(
    tss2: Identity, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    tpm.restart()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: attempt(client, server), range(8)))
    failures = [failure for seen, failure, _ in results if failure]
    assert failures
    assert all(isinstance(failure.__cause__, KeyGoneError) for failure in failures)
    assert handshake(client, server).client == "device"


def test_a_persistent_key_survives_a_restart(persistent: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(persistent, tcti=tpm.tcti)
    tpm.restart()
    assert handshake(client, server).client == "device"
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    with pytest.raises(ssl.SSLError, match="EVP lib") as caught:
        handshake(client, server)
    assert isinstance(caught.value.__cause__, HandleNotFoundError)
    assert isinstance(client.diagnose(), KeyGoneError)
    with pytest.raises(HandleNotFoundError, match="has nothing at that handle"):
        client.reload()


def test_another_key_at_the_same_handle_is_used_in_the_same_process(
    persistent: Identity, ca: TestCa, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    client_context(persistent, tcti=tpm.tcti)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    key = make_key(tpm, ca.folder, handle=HANDLE)
    client = client_context(ca.identity(key.reference, key.public_key, "device-2"), tcti=tpm.tcti)
    assert handshake(client, server).client == "device-2"


@pytest.mark.parametrize("kind", ["tss2", "persistent"])
def test_a_tpm_that_went_away_and_came_back(
    kind: str, server: IdentityContext, tpm: SimulatedTpm, request: pytest.FixtureRequest
) -> None:
    client = client_context(request.getfixturevalue(kind), tcti=tpm.tcti)
    assert handshake(client, server).client == "device"
    tpm.stop()
    with pytest.raises(ssl.SSLError, match="certificate required") as caught:
        handshake(client, server)
    assert isinstance(caught.value.__cause__, TpmUnavailableError)
    tpm.simulator.start()
    with pytest.raises(ssl.SSLError) as caught:
        handshake(client, server)
    assert isinstance(caught.value.__cause__, KeyGoneError)
    assert handshake(client, server).client == "device"


@pytest.mark.parametrize("waits", [False, True], ids=["reset", "closed"])
def test_a_server_that_hangs_up_on_a_client_without_its_key(
    tss2: Identity, server: IdentityContext, tpm: SimulatedTpm, *, waits: bool
) -> None:
    """The client writes first, as in HTTP, and after the server's refusal: over TCP that may be all that it sees."""
    client = client_context(tss2, tcti=tpm.tcti)
    assert handshake(client, server).client == "device"
    client.sessions.clear()
    tpm.stop()
    with _refusing_listener(server, reset=not waits) as connect:
        tls = connect(client)
        tpm.simulator.start()
        with pytest.raises(OSError, match=r".") as caught:
            _ask(tls)
        assert isinstance(caught.value.__cause__, KeyGoneError)
        with pytest.raises(OSError, match=r".") as caught:  # who goes on reading, as urllib3 does, learns it, too
            tls.recv(1)
        assert isinstance(caught.value.__cause__, KeyGoneError)
        tls.close()
    assert handshake(client, server).client == "device"


def _ask(tls: ssl.SSLSocket) -> None:
    for _ in range(2):
        tls.sendall(b"GET / HTTP/1.0\r\n\r\n")
        time.sleep(0.05)  # a connection that the peer has closed is reset by what comes then
    tls.recv(1)


@contextlib.contextmanager
def _refusing_listener(server: ssl.SSLContext, *, reset: bool) -> Iterator[Callable[[ssl.SSLContext], ssl.SSLSocket]]:
    """Yields what connects a client to ``server``, and returns when that has closed the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            plain, _ = listener.accept()
            with plain, contextlib.suppress(ssl.SSLError):
                if reset:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                server.wrap_socket(plain, server_side=True, suppress_ragged_eofs=True).close()

        def connect(client: ssl.SSLContext) -> ssl.SSLSocket:
            thread = threading.Thread(target=refuse)
            thread.start()
            tls = client.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="localhost")
            thread.join()
            return tls

        yield connect


def test_a_peers_refusal_costs_the_tpm_nothing(tss2: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    """Else anybody could keep a server's TPM busy by breaking handshakes off."""
    server = server_context(tss2, tcti=tpm.tcti)
    stranger = client_context(TestCa(ca.folder, "stranger").software_identity("x"))
    tpm.restart()  # the key is gone: whoever asked the TPM would find out
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ssl.SSLError, match=r"(?i)http.request") as caught:
            server.wrap_socket(far, server_side=True)
    assert caught.value.__cause__ is None
    del stranger


# --- the end ---


def test_two_contexts_with_one_persistent_key_do_not_disturb_each_other(
    persistent: Identity, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    first, second = (client_context(persistent, tcti=tpm.tcti) for _ in range(2))
    del first
    gc.collect()
    assert handshake(second, server).client == "device"


_PROGRAM = """
import sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context

key, certificate, trust, tcti = sys.argv[1:]
identity = Identity(parse_key_reference(key), Path(certificate), Path(trust))
context = client_context(identity, tcti=tcti)
"""


def _run(identity: Identity, tcti: str, then: str) -> subprocess.CompletedProcess[str]:
    arguments = [str(identity.key), str(identity.certificate), str(identity.trust), tcti]
    program = _PROGRAM + textwrap.dedent(then)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('oops')", 1),
        ("cycle = [context]; cycle.append(cycle); import gc; gc.disable()", 0),
        ("from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor(1).submit(context.diagnose)", 0),
    ],
)
def test_the_interpreters_exit_flushes_the_key(then: str, status: int, tss2: Identity, tpm: SimulatedTpm) -> None:
    assert _run(tss2, tpm.tcti, then).returncode == status
    assert tpm.handles("transient") == []


def test_a_handshake_after_the_key_was_released_fails_cleanly(
    tss2: Identity, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    """A daemon thread may still be at it while the interpreter ends."""
    client = client_context(tss2, tcti=tpm.tcti)
    assert client.own_key is not None
    client.own_key.begin_handshake()
    client.own_key.release()
    assert len(tpm.handles("transient")) == 1  # a handshake is under way
    client.own_key.end_handshake()
    client.own_key.release()
    assert tpm.handles("transient") == []
    with pytest.raises(ssl.SSLError):
        handshake(client, server)
    error = client.diagnose()
    assert isinstance(error, OpensslError)
    assert "does not sign" in str(error)


def test_the_last_user_of_a_context_may_let_it_go_while_the_exit_flushes_its_key(
    tss2: Identity, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    """Two threads that free one key at once end a program with "double free or corruption"."""
    proxy = TpmProxy(tpm, tmp_path)
    proxy.hold(FLUSH_CONTEXT)
    then = f"""
        import threading, time
        sys.path.insert(0, {str(TESTS)!r})
        from support.tpm_proxy import HeldCommands

        held = HeldCommands(Path({str(tmp_path)!r}))
        last = [context]
        del context

        def let_go():
            while not held.seen():
                time.sleep(0.001)
            held.release()
            last.clear()

        threading.Thread(target=let_go, daemon=True).start()
    """
    done = _run(tss2, proxy.tcti, then)
    assert (done.returncode, done.stderr) == (0, "")
    assert tpm.handles("transient") == []


def test_a_hanging_tpm_does_not_hold_the_interpreters_exit_up_for_ever(tss2: Identity, tpm: SimulatedTpm) -> None:
    then = """
        import threading
        import tpm_mtls.tls.own_key
        tpm_mtls.tls.own_key._PATIENCE = 0.05
        threading.Thread(target=context.own_key._changing.acquire).start()
    """
    assert _run(tss2, tpm.tcti, then).returncode == 0
    tpm.flush()


def test_a_loaded_module_loads_neither_cryptography_nor_pytss(tss2: Identity, tpm: SimulatedTpm) -> None:
    done = _run(tss2, tpm.tcti, "print(sorted({'cryptography', 'tpm2_pytss', 'click'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_nothing_is_written_to_stderr(tss2: Identity, tpm: SimulatedTpm) -> None:
    """libtss2 would put its own lines between the program's."""
    assert _run(tss2, tpm.tcti, "").stderr == ""
    done = _run(tss2, "swtpm:host=127.0.0.1,port=1", "")
    assert "tpm_mtls.errors.TpmUnavailableError" in done.stderr
    assert "ERROR:tcti" not in done.stderr


# --- forks ---


def _in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does ``work`` and then ends without Python's cleaning up."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except SystemExit as end:
            os._exit(int(str(end.code)))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["tss2", "persistent"])
def test_a_forked_child_uses_the_context(
    kind: str, server: IdentityContext, tpm: SimulatedTpm, request: pytest.FixtureRequest
) -> None:
    client = client_context(request.getfixturevalue(kind), tcti=tpm.tcti)
    assert handshake(client, server).client == "device"

    def child() -> None:
        nonlocal client
        assert handshake(client, server).client == "device"
        assert client.diagnose() is None
        del client
        gc.collect()

    assert _in_child(child) == 0
    assert handshake(client, server).client == "device"
    assert client.diagnose() is None


@pytest.mark.parametrize("end", ["sys.exit(5)", "os._exit(5)", "context.diagnose(); sys.exit(5)"])
def test_a_childs_end_leaves_the_parents_key(end: str, tss2: Identity, tpm: SimulatedTpm) -> None:
    then = f"""
        import os
        if os.fork() == 0:
            {end}
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
        print(context.diagnose())
    """
    done = _run(tss2, tpm.tcti, then)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert tpm.handles("transient") == []


def test_a_child_without_a_tpm_says_so(tss2: Identity, server: IdentityContext, tpm: SimulatedTpm) -> None:
    client = client_context(tss2, tcti=tpm.tcti)
    tpm.stop()

    def child() -> None:
        with pytest.raises(TpmUnavailableError, match="no TPM answers"):
            handshake(client, server)

    assert _in_child(child) == 0


def test_multiprocessing_workers_use_the_context_and_leave_nothing(tss2: Identity, tpm: SimulatedTpm) -> None:
    then = """
        import multiprocessing
        def work(_):
            return str(context.diagnose())
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.map(work, range(2)))
            pool.close()
            pool.join()
        print(context.diagnose())
    """
    done = _run(tss2, tpm.tcti, then)
    assert (done.returncode, done.stdout) == (0, "['None', 'None']\nNone\n"), done.stderr
    assert tpm.handles("transient") == []


# --- many at once ---


@pytest.mark.parametrize("kind", ["tss2", "persistent"])
def test_32_threads_share_one_context(
    kind: str, server: IdentityContext, tpm: SimulatedTpm, request: pytest.FixtureRequest
) -> None:
    client = client_context(request.getfixturevalue(kind), tcti=tpm.tcti)
    with ThreadPoolExecutor(32) as pool:
        seen = list(pool.map(lambda _: handshake(client, server).client, range(96)))
    assert seen == ["device"] * 96


def test_reloads_do_not_disturb_handshakes_of_other_threads(
    persistent: Identity, server: IdentityContext, tpm: SimulatedTpm
) -> None:
    client = client_context(persistent, tcti=tpm.tcti)
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(handshake, client, server) for _ in range(40)]
        for _ in range(5):
            client.reload()
        assert {item.result().client for item in work} == {"device"}


def _shake_in_process(identity: Identity, tcti: str, server_identity: Identity) -> str | None:
    return handshake(client_context(identity, tcti=tcti), server_context(server_identity)).client


def test_8_processes_with_a_persistent_key(persistent: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    server_identity = ca.software_identity("localhost")
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("fork")) as pool:
        work = [pool.submit(_shake_in_process, persistent, tpm.tcti, server_identity) for _ in range(16)]
        assert [item.result() for item in work] == ["device"] * 16
