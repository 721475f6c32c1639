"""The configuration page has every file that the systemd units read, and every setting in it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

from support.named_commands import ROOT

if TYPE_CHECKING:
    from pathlib import Path

UNIT = """\
# EnvironmentFile=/etc/tpm-mtls/other.env
[Unit]
ConditionPathExists=/etc/tpm-mtls/ca.pem
[Service]
Environment=LISTEN=127.0.0.1:1
Environment=OPTIONS=
EnvironmentFile=-/etc/tpm-mtls/probe.env
ExecStartPre=/bin/sh -c 'test ! -e "$$0"'
ExecStart=/bin/p --key ${CREDENTIALS_DIRECTORY}/key --listen ${LISTEN} --to ${CA} -t /etc/tpm-mtls/ca.pem $OPTIONS
"""


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a script's module
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("reference_units")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.service").write_text(UNIT)
    drop_in = tmp_path / "drop-ins" / "probe.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "token.conf").write_text("LoadCredential=t:/etc/tpm-mtls/token\nExecStart=a /etc/tpm-mtls/ca.pem\n")
    return tmp_path


def test_settings_are_the_variables_of_the_command_with_what_holds_without_them(units: Any, folder: Path) -> None:  # noqa: ANN401 - see above
    assert units.read_settings(folder) == {"probe.env": {"LISTEN": "127.0.0.1:1", "CA": None, "OPTIONS": ""}}


def test_files_are_told_with_the_units_that_read_them(units: Any, folder: Path) -> None:  # noqa: ANN401 - see above
    assert units.read_files(folder) == {"ca.pem": ["probe.service"], "token": ["probe.service.d/token.conf"]}


def test_a_setting_or_file_without_words_is_not_passed_over(
    units: Any,  # noqa: ANN401 - see above
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units, "UNITS", folder)
    with pytest.raises(KeyError, match="'token'"):
        list(units.units_section())
    (folder / "probe.service").write_text(UNIT.replace("{CA}", "{NEW}"))
    with pytest.raises(KeyError, match="'NEW'"):
        list(units.units_section())


def test_there_are_words_for_nothing_else(units: Any) -> None:  # noqa: ANN401 - see above
    settings = units.read_settings(units.UNITS)
    assert {variable for variables in settings.values() for variable in variables} == set(units.SETTINGS)
    assert units.read_files(units.UNITS).keys() == units.FILES.keys()
    assert {"agent.env", "first-boot.env", "pki.env", "provision.env", "renew.env", "server.env"} == settings.keys()
