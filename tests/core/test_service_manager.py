"""A word to systemd, and silence where there is none."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.service_manager import notify, notify_status, watchdog_interval

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_hears_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@tpm-mtls-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if kind == "abstract" else address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)

        notify_status("making the key")

        assert manager.recv(100) == b"STATUS=making the key"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify", "relative"])
def test_nobody_there_is_no_error(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)

    notify_status("making the key")


def test_a_text_cannot_smuggle_in_another_assignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        notify("READY=1", "STATUS=no TPM\nSTOPPING=1")

        assert manager.recv(100) == b"READY=1\nSTATUS=no TPM STOPPING=1"


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_a_watchdog_is_fed_if_it_is_ours(
    microseconds: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)

    assert watchdog_interval() == seconds
