"""What operators type on the server's machine, and a device for them to see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.attesting_device import AttestingDevice
from tpm_mtls.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.device_ca import DeviceCa


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The one of the fixture ``backend``."""
    return f"sqlite:///{tmp_path}/telemetry.db"


@pytest.fixture
def server_command(capsys: pytest.CaptureFixture[str], database: str) -> Callable[[str], Callable[..., Any]]:
    """Runs ``tpm-mtls server NOUN``, which must end with ``status``: its JSON, its text, or its errors."""

    def of(noun: str) -> Callable[..., Any]:
        def command(*arguments: str, status: int = 0, text: bool = False) -> Any:  # noqa: ANN401 - JSON
            how = () if text else ("--json",)
            assert run(["server", noun, *arguments, "--database", database, *how]) == status
            output, errors = capsys.readouterr()
            if status:
                assert errors.startswith("tpm-mtls: error: ")
                assert "\ntpm-mtls: hint: " in errors
                return errors
            return output if text else json.loads(output)

        return command

    return of


@pytest.fixture
def machine(ca: DeviceCa) -> AttestingDevice:
    return AttestingDevice(ca)
