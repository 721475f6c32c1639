"""`tpm_mtls.hint_options`: a hint can be pasted, whatever folders the user's command named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tpm_mtls.cli import main, run
from tpm_mtls.hint_options import named_places, with_places

if TYPE_CHECKING:
    from pathlib import Path

PLACES = {"--state-dir": "shop.id", "--tcti": "swtpm:port=1"}


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ("agent check --state-dir shop.id --run-dir run", {"--state-dir": "shop.id", "--run-dir": "run"}),
        ("agent check --state-dir=a=b --state-dir c", {"--state-dir": "c"}),
        ("agent check --state-dir=a=b", {"--state-dir": "a=b"}),
        ("secret exec a --socket s -- program --state-dir d", {"--socket": "s"}),
        ("keygen list --json --state-directory x", {}),
        ("keygen list --state-dir", {"--state-dir": ""}),
        ("", {}),
    ],
)
def test_what_the_user_named(arguments: str, places: dict[str, str]) -> None:
    assert named_places(arguments.split()) == places


@pytest.mark.parametrize(
    ("hint", "completed"),
    [
        (
            "list what it has: tpm-mtls keygen list",
            "list what it has: tpm-mtls keygen list --state-dir shop.id --tcti swtpm:port=1",
        ),
        (
            "tpm-mtls policy check --key KEY says what differs",
            "tpm-mtls policy check --state-dir shop.id --tcti swtpm:port=1 --key KEY says what differs",
        ),
        (
            "see tpm-mtls agent check; or tpm-mtls explain 0x9a2",
            "see tpm-mtls agent check --state-dir shop.id --tcti swtpm:port=1; or tpm-mtls explain 0x9a2",
        ),
        ("tpm-mtls pki approval list shows it", "tpm-mtls pki approval list shows it"),
        ("tpm-mtls trace -- curl", "tpm-mtls trace --tcti swtpm:port=1 -- curl"),
        ("see tpm-mtls keygen", "see tpm-mtls keygen"),
        ("tpm-mtls never heard of", "tpm-mtls never heard of"),
        ("tpm-mtls keygen list --state-dir D", "tpm-mtls keygen list --tcti swtpm:port=1 --state-dir D"),
        ("journalctl -u tpm-mtls-agent", "journalctl -u tpm-mtls-agent"),
        ("ask the operator", "ask the operator"),
    ],
)
def test_a_command_gets_what_it_takes(hint: str, completed: str) -> None:
    assert with_places(hint, PLACES, main) == completed


def test_a_value_can_be_pasted() -> None:
    places = {"--ca-dir": "my ca; ls"}
    assert with_places("tpm-mtls pki approval list", places, main) == "tpm-mtls pki approval list --ca-dir 'my ca; ls'"
    assert with_places("tpm-mtls pki approval list", {"--ca-dir": ""}, main) == "tpm-mtls pki approval list"


def test_a_password_is_not_repeated() -> None:
    hint, url = "tpm-mtls server device list", "postgresql://backend:horse@database.example/telemetry"
    assert with_places(hint, {"--database": url}, main) == hint
    for allowed in ("sqlite:///telemetry.db", "postgresql://backend@database.example/telemetry"):
        assert with_places(hint, {"--database": allowed}, main) == f"tpm-mtls server device list --database {allowed}"


def test_an_error_says_the_command_that_leads_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a folder that is not the default one, the command of the hint would look elsewhere without it."""
    places = ["--state-dir", str(tmp_path), "--socket", str(tmp_path / "socket")]
    assert run(["agent", "status", *places]) != 0
    assert f"tpm-mtls agent run {' '.join(places)}" in capsys.readouterr().err
