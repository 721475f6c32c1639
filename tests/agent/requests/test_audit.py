"""The audit log: what it says, what it never says, and that it survives rotation and a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.other_user import give, needs_root, not_given
from tpm_mtls.errors import StorageError
from tpm_mtls_agent.requests.audit import BURST, AuditLog
from tpm_mtls_agent.requests.listening import locked
from tpm_mtls_agent.requests.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER = Peer(pid=100, uid=1000, gids=(1001, 44), cgroup="/system.slice/app.service")


class Clock:
    """Seconds that pass when told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[AuditLog]:
    log = AuditLog(path, now=lambda: datetime(2026, 11, 22, 4, 5, 6, 789000, UTC), monotonic=clock)
    yield log
    log.close()


@needs_root
def test_a_log_or_a_lock_that_root_makes_is_of_the_folders_owner(tmp_path: Path) -> None:
    """An agent that root has started once leaves nothing that the service could not open."""
    folder = give(tmp_path / "theirs")
    with closing(AuditLog(folder / "audit.jsonl")) as log, locked(folder / "lock", "held"):
        log.write(PEER, "ok", seconds=0.1, action="get", secret="1a2b")
    assert len(list(folder.iterdir())) == 2
    assert not not_given(folder)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_when_and_what_came_of_it(log: AuditLog, path: Path) -> None:
    log.write(PEER, "ok", seconds=0.0123, action="set", secret="1a2b", index="0x01520042")
    log.write(PEER, "PolicyRefusedError", seconds=1, action="get", secret="1a2b", rc=0x99D)

    assert lines(path) == [
        {
            "time": "2026-11-22T04:05:06.789Z",
            "result": "ok",
            "action": "set",
            "secret": "1a2b",
            "index": "0x01520042",
            "uid": 1000,
            "gid": 1001,
            "pid": 100,
            "cgroup": "/system.slice/app.service",
            "milliseconds": 12,
        },
        {
            "time": "2026-11-22T04:05:06.789Z",
            "result": "PolicyRefusedError",
            "action": "get",
            "secret": "1a2b",
            "rc": "0x99d",
            "uid": 1000,
            "gid": 1001,
            "pid": 100,
            "cgroup": "/system.slice/app.service",
            "milliseconds": 1000,
        },
    ]


def test_it_is_private_and_appended_to(log: AuditLog, path: Path) -> None:
    log.write(PEER, "first", seconds=0)
    again = AuditLog(path)
    again.write(PEER, "second", seconds=0)
    again.close()

    assert path.stat().st_mode & 0o777 == 0o600
    assert [line["result"] for line in lines(path)] == ["first", "second"]


def test_a_rotated_log_goes_on_in_a_new_file(log: AuditLog, path: Path) -> None:
    log.write(PEER, "first", seconds=0)
    path.rename(path.with_suffix(".1"))
    log.write(PEER, "second", seconds=0)
    log.reopen()
    log.write(PEER, "third", seconds=0)

    assert [line["result"] for line in lines(path.with_suffix(".1"))] == ["first", "second"]
    assert [line["result"] for line in lines(path)] == ["third"]


def test_if_it_cannot_be_reopened_it_goes_on_in_the_old_file(log: AuditLog, path: Path) -> None:
    log.write(PEER, "first", seconds=0)
    path.rename(path.with_suffix(".1"))
    path.mkdir()

    with pytest.raises(StorageError, match="cannot open"):
        log.reopen()
    log.write(PEER, "second", seconds=0)
    assert [line["result"] for line in lines(path.with_suffix(".1"))] == ["first", "second"]


def test_a_line_that_a_power_cut_tore_does_not_spoil_the_next(path: Path) -> None:
    path.write_bytes(b'{"time":"2026-')
    path.chmod(0o600)
    log = AuditLog(path)
    log.write(PEER, "ok", seconds=0)
    log.write(PEER, "ok", seconds=0)
    log.close()

    torn, *whole = path.read_text().splitlines()
    assert torn == '{"time":"2026-'
    assert [json.loads(line)["result"] for line in whole] == ["ok", "ok"]


FULL = """
import resource, sys
from pathlib import Path
from tpm_mtls.errors import StorageError
from tpm_mtls_agent.requests.audit import AuditLog
from tpm_mtls_agent.requests.peers import Peer
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(Path(sys.argv[1]))
peer = Peer(1, 2, (3,), "/")
log.write(peer, "first", seconds=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        log.write(peer, "second", seconds=0)
    except StorageError as error:
        print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(peer, "third", seconds=0)
"""


def test_a_full_disk_is_said_so_and_the_log_goes_on_when_there_is_room(path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True, env=environment
    )

    assert done.stdout.splitlines() == [
        f"StorageError cannot write {path}: there was room for a part of a line only",
        f"StorageFullError cannot write {path}: file too large",
    ]
    first, torn, third = path.read_text().splitlines()
    assert (json.loads(first)["result"], json.loads(third)["result"]) == ("first", "third")
    assert torn.startswith('{"time"')


@pytest.mark.parametrize("kind", ["readable", "link", "folder", "pipe"])
def test_only_a_private_file_is_taken(kind: str, path: Path) -> None:
    if kind == "readable":
        path.touch(0o644)
    elif kind == "link":
        path.symlink_to(path.with_suffix(".elsewhere"))
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path, 0o600)

    with pytest.raises(StorageError):
        AuditLog(path)


def test_what_costs_a_client_nothing_cannot_fill_the_disk(log: AuditLog, path: Path, clock: Clock) -> None:
    for _ in range(BURST + 50):
        log.write(PEER, "UsageError", seconds=0, cheap=True)
    assert len(lines(path)) == BURST

    log.write(PEER, "ok", seconds=0)
    log.write(PEER, "ok", seconds=0)
    assert [line.get("left_out") for line in lines(path)[-2:]] == [50, None]

    clock.seconds += 2
    for _ in range(50):
        log.write(PEER, "UsageError", seconds=0, cheap=True)
    assert len(lines(path)) == BURST + 4


def test_no_descriptor_is_left_open(path: Path) -> None:
    path.touch(0o644)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(StorageError, match="is no file of this user alone"):
            AuditLog(path)

    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
