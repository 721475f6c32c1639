"""What a server tells systemd of its life."""

from __future__ import annotations

import asyncio
import contextlib
import socket
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


def test_the_watchdog_is_fed_while_the_event_loop_turns(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")

    async def serve() -> None:
        async with serving("serving"):
            await asyncio.sleep(0.1)
            assert heard(manager).count("WATCHDOG=1") >= 2
        heard(manager)
        await asyncio.sleep(0.05)
        assert heard(manager) == []

    asyncio.run(serve())


@pytest.mark.parametrize("fails", [False, True])
def test_a_reload_has_an_end_even_if_it_fails(fails: bool, manager: socket.socket) -> None:  # noqa: FBT001 - a parameter
    with contextlib.suppress(ValueError), reloading():
        if fails:
            raise ValueError
    begun, ended = heard(manager)
    assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert ended == "READY=1"
