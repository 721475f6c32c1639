"""What a server tells systemd of its life."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.service_life import reloading, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that hears what it is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield receiver


def heard(manager: socket.socket) -> list[str]:
    said = []
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(manager.recv(500).decode())
    return said


def test_a_server_is_ready_as_it_begins_and_stopping_as_it_ends(manager: socket.socket) -> None:
    async def serve() -> None:
        async with serving("serving https://localhost:1"):
            assert heard(manager) == ["READY=1\nSTATUS=serving https://localhost:1"]
            await asyncio.sleep(0)
        assert heard(manager) == ["STOPPING=1"]

    asyncio.run(serve())


def test_a_server_that_fails_is_stopping_too(manager: socket.socket) -> None:
    async def serve() -> None:
        async with serving("serving"):
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        asyncio.run(serve())
    assert heard(manager)[-1] == "STOPPING=1"


class LeapingSelector(selectors.SelectSelector):
    """Does not wait: ``now``, in seconds, leaps to where the waiting would end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop that has its own time."""

    def __init__(self) -> None:
        self._leaping = LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now


def test_the_watchdog_is_fed_twice_as_often_as_it_asks_while_the_event_loop_turns(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the interval, as sd_watchdog_enabled(3) recommends."""
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")

    async def serve() -> None:
        async with serving("serving"):
            await asyncio.sleep(119)
            assert heard(manager).count("WATCHDOG=1") == 4  # after 0, 30, 60 and 90 seconds
        heard(manager)
        await asyncio.sleep(90)
        assert heard(manager) == []

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(serve())


@pytest.mark.parametrize("fails", [False, True])
def test_a_reload_has_an_end_even_if_it_fails(fails: bool, manager: socket.socket) -> None:  # noqa: FBT001 - a parameter
    before = time.monotonic_ns()
    with contextlib.suppress(ValueError), reloading():
        if fails:
            raise ValueError
    begun, ended = heard(manager)
    said, _, moment = begun.partition("\nMONOTONIC_USEC=")
    assert said == "RELOADING=1"
    assert before // 1000 <= int(moment) <= time.monotonic_ns() // 1000  # sd_notify(3): by CLOCK_MONOTONIC
    assert ended == "READY=1"
