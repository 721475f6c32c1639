"""A TPM that is hardened, for one test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tpm_mtls.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from support.tpm import SimulatedTpm

ALL = """\
[owner]
authorization = "sealed:state/owner.sealed"
[endorsement]
authorization = "sealed:state/endorsement.sealed"
keys = ["L-2"]
[lockout]
authorization = "file:state/lockout"
max_tries = 10
recovery_time = "2h"
lockout_recovery = "24h"
[platform]
disable = true
"""

OWNER, ENDORSEMENT, LOCKOUT = "owner authorization", "endorsement authorization", "lockout authorization"


class Hardening:
    """``tpm-mtls provision`` in ``folder``, where ``hardening.toml`` is.

    Attributes:
        tcti: where its TPM is reached.
        errors: what the last run wrote to stderr.
    """

    def __init__(self, tpm: SimulatedTpm, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tcti = tpm.tcti
        self.folder = folder
        self.errors = ""
        self._capsys = capsys
        self.write(ALL)

    def write(self, text: str) -> None:
        """Makes ``hardening.toml`` say ``text``."""
        (self.folder / "hardening.toml").write_text(text)

    def command(self, verb: str, *options: str) -> list[str]:
        """The command line."""
        where = ["--tcti", self.tcti, "--state-dir", str(self.folder / "state")]
        return ["provision", f"--{verb}", str(self.folder / "hardening.toml"), *where, *options]

    def __call__(self, verb: str, *options: str, status: int = 0) -> dict[str, str | None]:
        """What is changed, by name, as ``plan`` or ``apply`` answer; none where it is as it is wanted."""
        assert run(self.command(verb, *options, "--json")) == status
        output, self.errors = self._capsys.readouterr()
        assert "Traceback" not in self.errors
        if status:
            assert self.errors.startswith("tpm-mtls: error: ")
            assert "\ntpm-mtls: hint: " in self.errors
            return {}
        found: dict[str, Any] = json.loads(output)
        assert found["applied"] is (verb == "apply")
        changes = {item["name"]: item["change"] for item in found["items"]}
        assert found["changes"] == sum(change is not None for change in changes.values())
        return changes

    def assert_done(self) -> None:
        """Everything is as it is wanted, and a further run changes nothing."""
        assert set(self("apply").values()) == {None}

    def srk_name(self) -> str:
        """Name of the storage root key, as the plan shows it."""
        assert run([*self.command("plan"), "--json"]) == 0
        items = json.loads(self._capsys.readouterr().out)["items"]
        return next(str(item["now"]) for item in items if item["name"] == "storage root key")

    def secret(self, name: str, value: str) -> str:
        """A private file ``name`` with ``value``, as the source of an authorization value."""
        path = self.folder / name
        path.write_text(value + "\n")
        path.chmod(0o600)
        return f"file:{path}"
