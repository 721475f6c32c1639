"""A word to systemd, and silence where there is none."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from tpm_mtls_keygen.service_manager import notify_status

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
