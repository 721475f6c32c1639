"""The socket, the agent's own or systemd's; and the word to systemd."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.agent import MemoryStore, RunningAgent, running_agent
from support.waiting import comes
from tpm_mtls.errors import StateError, StorageError, TpmUnavailableError, UsageError
from tpm_mtls_agent.requests import listening
from tpm_mtls_agent.requests.activation import activated_socket
from tpm_mtls_agent.requests.listening import Listener, bound_socket, listener
from tpm_mtls_agent.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tpmd.sock"


@contextmanager
def bound(path: Path, group: str | None = None) -> Iterator[list[str]]:
    """What is said about a socket that listens at ``path``."""
    said: list[str] = []
    with bound_socket(path, group=group, say=said.append):
        yield said


def crippled(program: str, *arguments: object) -> list[str]:
    """The lines that ``program`` prints, in a Python that coverage does not measure: it gives up its rights."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()


def test_the_socket_is_for_the_owner_and_one_group(path: Path) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    with bound(path, group=own) as said:
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, os.geteuid(), os.getegid())
        assert said == []
        assert listener(path) == Listener(os.getpid(), os.geteuid())
    assert not path.exists()
    assert listener(path) is None


def test_without_the_default_group_it_is_for_the_owner_alone_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "DEFAULT_GROUP", "no-such-group")
    with bound(path) as said:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said == [f"only user {os.geteuid()} may connect: not for the group no-such-group, there is no such group"]


def test_a_group_that_was_asked_for_must_be_had(path: Path) -> None:
    with (
        pytest.raises(UsageError, match="cannot be given to the group 'no-such-group': there is no such group"),
        bound(path, group="no-such-group"),
    ):
        pass
    assert not path.exists()


NOT_ROOT = """
import os, sys
from pathlib import Path
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls_agent.requests import listening
listening.DEFAULT_GROUP = "root"
os.setgroups([]); os.setgid(4321); os.setuid(4321)
path = Path(sys.argv[1])
try:
    with listening.bound_socket(path, group=sys.argv[2] or None, say=print):
        print(oct(path.stat().st_mode & 0o777))
except TpmMtlsError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("", ["only user 4321 may connect: not for the group root, this user is neither root nor a member", "0o600"]),
        ("root", ["UsageError the socket cannot be given to the group 'root': this user is neither root nor a member"]),
    ],
)
def test_who_is_not_root_is_told_what_that_means(group: str, said: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to other users
        os.chown(folder, 4321, 4321)
        assert crippled(NOT_ROOT, Path(folder) / "tpmd.sock", group) == said


def test_a_dead_daemons_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()

    with bound(path):
        assert listener(path) == Listener(os.getpid(), os.geteuid())


def test_a_live_daemons_socket_is_refused_and_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(StateError, match="another daemon listens at"), bound(path):
            pass
        assert listener(path) is not None


def test_a_daemon_too_busy_to_answer_is_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        waiting.connect(str(path))
        with pytest.raises(StateError, match="another daemon listens at"), bound(path):
            pass


def test_a_datagram_socket_of_somebody_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(StateError, match="another daemon listens at"), bound(path):
            pass


def test_another_agent_at_the_same_socket_is_refused(path: Path) -> None:
    with bound(path):
        with pytest.raises(StateError, match="another agent serves"), bound(path):
            pass
        assert listener(path) is not None


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_replaced(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/nowhere")

    with pytest.raises(StateError, match="is there already, and is no socket"), bound(path):
        pass
    assert os.path.lexists(path)


def test_a_socket_that_somebody_else_put_there_meanwhile_stays(path: Path) -> None:
    with bound(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longer than 107 bytes"), bound(tmp_path / ("s" * 108)):
        pass
    with pytest.raises(StorageError, match="no such file"), bound(tmp_path / "nowhere" / "tpmd.sock"):
        pass


DENIED = """
import os, sys
from pathlib import Path
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls_agent.requests.listening import bound_socket, listener
os.setgroups([]); os.setgid(4321); os.setuid(4321)
binding = bound_socket(Path(sys.argv[2]), group=None, say=print)
for attempt in (lambda: listener(Path(sys.argv[1])), binding.__enter__):
    try:
        attempt()
    except TpmMtlsError as error:
        print(type(error).__name__, str(error).replace(sys.argv[3], ""))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_find_out_whether_a_daemon_lives_is_told_so() -> None:
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as live:
        folder = Path(name)
        folder.chmod(0o755)
        live.bind(f"{folder}/s")
        (folder / "s").chmod(0o600)
        live.listen()
        assert crippled(DENIED, folder / "s", folder / "t", folder) == [
            "StorageError cannot connect to /s: permission denied",
            "StorageError cannot write /t.lock: permission denied",
        ]


def environment_for(pid: int | None = None, count: str = "1") -> dict[str, str]:
    """What systemd sets."""
    return {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "tpmd.socket", "OTHER": "1"}


def test_a_socket_from_systemd_is_taken_and_its_variables_go(path: Path) -> None:
    environment = environment_for()
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        given.set_inheritable(True)
        taken = activated_socket(environment, first=given.fileno())
        assert taken is not None
        assert taken.getsockname() == str(path)
        assert not taken.get_inheritable()
        taken.detach()
    assert environment == {"OTHER": "1"}


@pytest.mark.parametrize("environment", [{}, environment_for(1), {"LISTEN_PID": str(os.getpid())}])
def test_variables_meant_for_another_process_are_not_ours(environment: dict[str, str]) -> None:
    assert activated_socket(environment) is None


@pytest.mark.parametrize("kind", ["not listening", "datagram", "internet"])
def test_another_kind_of_socket_is_refused(path: Path, kind: str) -> None:
    family = socket.AF_INET if kind == "internet" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as given:
        given.bind(("127.0.0.1", 0) if kind == "internet" else str(path))
        if kind == "internet":
            given.listen()
        with pytest.raises(UsageError, match="no listening Unix stream socket"):
            activated_socket(environment_for(), first=given.detach())


def test_several_sockets_or_no_socket_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="passes 2 sockets, expected one"):
        activated_socket(environment_for(count="2"))
    with (tmp_path / "file").open("w") as file, pytest.raises(UsageError, match="is no socket"):
        activated_socket(environment_for(), first=file.fileno())


@contextmanager
def manager(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that hears what it is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(folder / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        yield receiver


def test_systemd_hears_of_readiness_reload_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with running_agent(tmp_path) as agent:
            assert receiver.recv(200).decode() == f"READY=1\nSTATUS=serving {agent.socket}"
            await agent.reload()
            begin, end = receiver.recv(200).decode(), receiver.recv(200).decode()
            assert begin.startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert end == "READY=1"
        assert receiver.recv(200) == b"STOPPING=1"

    with manager(tmp_path, monkeypatch) as receiver:
        asyncio.run(run())


def test_systemd_hears_what_is_wrong_with_the_tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.open_fault = TpmUnavailableError("no TPM answers", hint="is it there", tcti="swtpm:")

    async def run() -> None:
        async with running_agent(tmp_path, store=store) as agent:
            status = f"READY=1\nSTATUS=serving {agent.socket}, but no TPM answers"
            assert receiver.recv(200).decode() == status

    with manager(tmp_path, monkeypatch) as receiver:
        asyncio.run(run())


def test_the_watchdog_is_fed_until_the_tpm_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fed() -> int:
        count = 0
        while True:
            try:
                count += receiver.recv(200) == b"WATCHDOG=1"
            except BlockingIOError:
                return count

    async def test(agent: RunningAgent) -> None:
        for _ in range(3):
            await comes(fed, "the watchdog was not fed")
        agent.store.gate.clear()
        stuck = asyncio.create_task(agent.ask("set", "key", value="v"))
        await asyncio.sleep(0.3)
        fed()
        await asyncio.sleep(0.3)
        assert fed() == 0
        agent.store.gate.set()
        assert (await stuck)["ok"]
        await comes(fed, "the watchdog was not fed again")

    async def run() -> None:
        async with running_agent(tmp_path, limits=Limits(stuck=0.2)) as agent:
            await test(agent)

    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with manager(tmp_path, monkeypatch) as receiver:
        asyncio.run(run())
