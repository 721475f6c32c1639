"""The Python client of the agent: the protocol to the letter, and nothing else taken for an answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from support.processes import run_crippled
from support.scripted_agent import MemoryAgent, ScriptedAgent, answering, read_object, repeat
from tpm_mtls.errors import (
    AgentRefusedError,
    AuthorizationError,
    ForeignKeyError,
    NoSuchSecretError,
    PeerUnreachableError,
    PolicyRefusedError,
    ResponseError,
    TpmLockoutError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
    UsageError,
)
from tpm_mtls.secrets import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "third-party-api-key"
VALUE = "sk_live_abc123xyz"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def agent(path: Path) -> Iterator[MemoryAgent]:
    with MemoryAgent(path) as running:
        yield running


def test_a_secret_is_set_got_and_deleted(agent: MemoryAgent) -> None:
    client = Client(agent.path)
    assert client.set(NAME, VALUE) == 0x01520000
    assert client.get(NAME) == VALUE
    client.delete(NAME)
    with pytest.raises(NoSuchSecretError, match=r"^no secret has that name\n") as refused:
        client.get(NAME)
    assert refused.value.hint == "check it"
    with pytest.raises(NoSuchSecretError):
        client.delete(NAME)


def test_the_requests_are_the_documents_own(agent: MemoryAgent) -> None:
    """No newline, no end of the sending side: what the document's own programs send."""
    client = Client(agent.path)
    client.set(NAME, VALUE)
    client.get(NAME)
    client.delete(NAME)
    assert agent.asked == [
        b'{"action":"set","name":"third-party-api-key","value":"sk_live_abc123xyz"}',
        b'{"action":"get","name":"third-party-api-key"}',
        b'{"action":"del","name":"third-party-api-key"}',
    ]


@pytest.mark.parametrize("value", ["", "\n", 'a "quoted" \\ one\0', "ключ 🔑", "x" * 65536, "\x01" * 65536])
def test_every_text_comes_back_as_it_was(agent: MemoryAgent, value: str) -> None:
    client = Client(agent.path)
    client.set(NAME, value)
    assert client.get(NAME) == value


@pytest.mark.parametrize("value", [b"", b"\0\xff\n", bytes(range(256)) * 192])
def test_bytes_are_kept_in_base64_and_the_protocol_stays_as_it_is(agent: MemoryAgent, value: bytes) -> None:
    client = Client(agent.path)
    client.set_bytes(NAME, value)
    assert client.get_bytes(NAME) == value
    assert client.get(NAME).isascii()


@pytest.mark.parametrize("value", ["no base64!", "YQ", "YQ==\n", "ключ"])
def test_what_was_set_as_text_is_not_got_as_bytes(agent: MemoryAgent, value: str) -> None:
    client = Client(agent.path)
    client.set(NAME, value)
    with pytest.raises(UsageError, match="not in base64") as refused:
        client.get_bytes(NAME)
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("", VALUE, "the name has 0 bytes"),
        ("n" * 256, VALUE, "the name has 256 bytes"),
        ("ж" * 128, VALUE, "the name has 256 bytes"),
        ("na\0me", VALUE, "NUL"),
        ("\ud800", VALUE, "the name is no Unicode text"),
        (NAME, "v" * 65537, "65537 bytes"),
        (NAME, "\udfff", "the value is no Unicode text"),
    ],
)
def test_what_no_agent_takes_is_not_sent(path: Path, name: str, value: str, why: str) -> None:
    """Nobody listens: the refusal is the client's own."""
    with pytest.raises(UsageError, match=why):
        Client(path).set(name, value)


@pytest.mark.parametrize(
    ("rc", "expected"),
    [
        ("0x0", AgentRefusedError),
        ("0x14b", TpmMemoryError),
        ("0x921", TpmLockoutError),
        ("0x99d", PolicyRefusedError),
        ("0x9a2", AuthorizationError),
        ("0x98e", AuthorizationError),
        ("0x1df", ForeignKeyError),
        ("0x101", TpmRefusedError),
        ("0x3ff", TpmRefusedError),
        ("0x18b", NoSuchSecretError),
    ],
)
def test_the_tpms_code_says_which_error_it_is(path: Path, rc: str, expected: type[TpmMtlsError]) -> None:
    answer = f'{{"error":"it did not work; try another day","rc":"{rc}"}}'.encode()
    with (
        ScriptedAgent(path, answering(answer)),
        pytest.raises(TpmMtlsError, match=r"^it did not work\n") as refused,
    ):
        Client(path).get(NAME)
    assert type(refused.value) is expected
    assert refused.value.hint == "try another day"
    if isinstance(refused.value, TpmRefusedError | AgentRefusedError):
        assert refused.value.rc == int(rc, 16)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "without any"),
        (b'{"ok":true,"value":"ha', "truncated"),
        (b'{"ok":true,"value":"a"}{"ok":true,"value":"b"}', "trailing"),
        (b'{"ok":true,"value":"\xff"}', "utf-8"),
        (b'{"ok":true,"value":1}', "Expected `str"),
        (b'{"ok":"yes","value":"a"}', "Expected `bool"),
        (b'{"ok":false,"value":"a"}', "neither ok nor error"),
        (b'{"error":"e"}', "neither ok nor error"),
        (b'{"error":"e","rc":"zero"}', "neither ok nor error"),
        (b'["ok"]', "Expected `object"),
        (b'{"ok":true}', "it has no value"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "malformed"),
    ],
)
def test_what_is_no_answer_is_named(path: Path, answer: bytes, why: str) -> None:
    with ScriptedAgent(path, answering(answer)), pytest.raises(ResponseError, match=why):
        Client(path).get(NAME)


@pytest.mark.parametrize("index", ["", ',"index":"1520042"', ',"index":"0x1"', ',"index":"0x0152004g"'])
def test_a_set_that_does_not_say_where_is_no_answer(path: Path, index: str) -> None:
    answer = f'{{"ok":true{index}}}'.encode()
    with ScriptedAgent(path, answering(answer)), pytest.raises(ResponseError, match="where the secret is"):
        Client(path).set(NAME, VALUE)


def test_an_endless_answer_is_cut(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        read_object(connection)
        repeat(connection, b"a" * 65536)

    with ScriptedAgent(path, serve), pytest.raises(ResponseError, match="more than"):
        Client(path).get(NAME)


def test_a_refusal_is_read_though_the_agent_did_not_listen_to_the_end(path: Path) -> None:
    """An agent may answer, and close, as soon as it has seen enough; the kernel then tells of a reset."""

    def serve(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(b'{"error":"that is too much; send less","rc":"0x0"}')

    with ScriptedAgent(path, serve), pytest.raises(AgentRefusedError, match="that is too much"):
        Client(path).set(NAME, "\x01" * 65536)


def test_an_agent_that_is_killed_in_the_midst_is_named(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(10)

    with ScriptedAgent(path, serve), pytest.raises(PeerUnreachableError, match="connection reset by peer"):
        Client(path).set(NAME, "x" * 65536)


def test_a_silent_agent_is_given_up(path: Path) -> None:
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        over.wait(30)
        del connection

    with ScriptedAgent(path, serve):
        began = time.monotonic()
        with pytest.raises(PeerUnreachableError, match=r"did not answer within 0\.2 seconds"):
            Client(path, timeout=0.2).get(NAME)
        assert time.monotonic() - began < 5
        over.set()


def test_the_time_is_that_of_the_whole_request(path: Path) -> None:
    """An agent that says a byte now and then does not get more of it."""

    def serve(connection: socket.socket) -> None:
        read_object(connection)
        repeat(connection, b" ", pause=0.05)

    with ScriptedAgent(path, serve), pytest.raises(PeerUnreachableError, match="did not answer"):
        Client(path, timeout=0.3).get(NAME)


def fill_queue(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """A socket whose queue of connections is full, and what fills it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    waiting = []
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            connection.close()
            return listener, waiting
        waiting.append(connection)


def test_a_full_queue_is_waited_for(path: Path) -> None:
    """A non-blocking connect would fail at once: EAGAIN, unix(7)."""
    listener, waiting = fill_queue(path)
    with listener, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(Client(path, timeout=10).get, NAME)
        time.sleep(0.1)
        assert not asked.done()
        for each in waiting:
            each.close()
        for _ in range(len(waiting) + 1):
            connection, _ = listener.accept()
            with connection:
                if read_object(connection):
                    connection.sendall(b'{"ok":true,"value":"at last"}')
        assert asked.result() == "at last"


def test_a_queue_that_stays_full_is_given_up(path: Path) -> None:
    listener, waiting = fill_queue(path)
    with listener, pytest.raises(PeerUnreachableError, match="did not answer within"):
        Client(path, timeout=0.2).get(NAME)
    for each in waiting:
        each.close()


def test_many_clients_at_once_are_served(agent: MemoryAgent) -> None:
    client = Client(agent.path)
    client.set(NAME, VALUE)
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(client.get, [NAME] * 200)) == [VALUE] * 200


def make_nothing(path: Path) -> None:
    assert not path.exists()


def make_file(path: Path) -> None:
    path.touch()


def make_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "why", "hint"),
    [
        (make_nothing, "no such file or directory", "tpm-mtls agent run"),
        (make_file, "connection refused", "start it again"),
        (make_dead_socket, "connection refused", "start it again"),
    ],
)
def test_where_no_agent_listens_it_is_said_why(path: Path, make: Callable[[Path], None], why: str, hint: str) -> None:
    make(path)
    with pytest.raises(PeerUnreachableError, match=f"^no agent answers at {path}: {why}\n") as refused:
        Client(path).get(NAME)
    assert hint in refused.value.hint
    assert refused.value.host == str(path)


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longer than 107 bytes"):
        Client(tmp_path / ("x" * 120)).get(NAME)


def test_who_may_not_use_the_socket_is_told_what_lacks(agent: MemoryAgent) -> None:
    code = """if True:
        import os, sys
        from pathlib import Path
        from tpm_mtls.errors import PeerUnreachableError
        from tpm_mtls.secrets import Client
        os.setuid(65534)
        try:
            Client(Path(sys.argv[1])).get("a name")
        except PeerUnreachableError as error:
            sys.exit(f"{error}; {error.hint}")
    """
    said = run_crippled(code, str(agent.path))
    assert "permission denied; the socket's group may use it" in said
    assert agent.asked == []


def test_the_client_needs_no_tpm_library() -> None:
    code = "import sys, tpm_mtls.secrets; print(*sorted({each.partition('.')[0] for each in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tpm_mtls" in loaded
    assert not {"tpm2_pytss", "cryptography", "ssl", "click"} & set(loaded)
