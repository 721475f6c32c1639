"""The units of first boot, renewal, server and CA: their commands exist, and get what they are told."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from support.units import COMMAND, DROP_INS, FOLDER, PACKAGING, SERVICES, command, setting, settings
from tpm_mtls.cli import main
from tpm_mtls.identity import DEFAULT_FOLDER, RECORD
from tpm_mtls_agent.settings import Limits as AgentLimits
from tpm_mtls_keygen.first_boot_folder import INSTALL
from tpm_mtls_pki.serve import ServeOptions
from tpm_mtls_server.settings import Limits

if TYPE_CHECKING:
    from pathlib import Path

    import click

FIRST_BOOT, RENEW = FOLDER / "tpm-mtls-first-boot.service", FOLDER / "tpm-mtls-renew.service"
SERVER, PKI = FOLDER / "tpm-mtls-server.service", FOLDER / "tpm-mtls-pki.service"
CRL = FOLDER / "tpm-mtls-server-crl.service"
OURS = [unit for unit in [*SERVICES, *DROP_INS] if COMMAND in unit.read_text()]
ON_DEVICE = [FIRST_BOOT, RENEW, FOLDER / "tpm-mtls-agent.service"]
USES_TPM = [
    *(*ON_DEVICE, FOLDER / "tpm-mtls-provision.service"),
    *(path for path in DROP_INS if path.stem in {"tpm-key", "sealed-passphrase"}),
]


def parsed(unit: Path) -> click.Context:
    """The options that the unit's command gives, as the command itself reads them."""
    words = command(unit)
    assert words[0] == COMMAND
    context = main.make_context("tpm-mtls", words[1:])
    while (rest := [*context._protected_args, *context.args]) and hasattr(context.command, "resolve_command"):
        name, found, rest = context.command.resolve_command(context, rest)
        assert found is not None
        context = found.make_context(name, rest, parent=context)
    return context


def identifier(unit: Path) -> str:
    return f"{unit.parent.stem}-{unit.stem}"


@pytest.mark.parametrize("unit", OURS, ids=identifier)
def test_each_unit_gives_a_command_that_takes_it(unit: Path) -> None:
    assert parsed(unit).command.name in {"provision", "first-boot", "renew", "serve", "run"}


@pytest.mark.parametrize("unit", OURS, ids=identifier)
def test_no_command_of_a_unit_names_a_credential_that_the_unit_does_not_load(unit: Path) -> None:
    loaded = {value.partition(":")[0] for value in settings(unit, "LoadCredential(?:Encrypted)?") if value}
    words = shlex.split(setting(unit, "ExecStart"))
    asked = {word.rpartition("/")[2] for word in words if word.startswith("${CREDENTIALS_DIRECTORY}/")}
    asked |= {word.partition(":")[2] for word in words if word.startswith("credential:")}
    assert asked == loaded


def test_the_sealed_passphrase_is_the_one_that_the_ca_asks_for() -> None:
    (drop_in,) = (path for path in DROP_INS if path.stem == "sealed-passphrase")
    assert setting(drop_in, "LoadCredentialEncrypted").partition(":")[0] == "ca-passphrase"
    assert "credential:ca-passphrase" in command(PKI)


@pytest.mark.parametrize("unit", [unit for unit in OURS if unit in SERVICES], ids=identifier)
def test_each_service_takes_more_options_from_a_file(unit: Path) -> None:
    name = unit.stem.removeprefix("tpm-mtls-")
    assert setting(unit, "EnvironmentFile").removeprefix("-") == f"/etc/tpm-mtls/{name}.env"
    assert "OPTIONS=" in settings(unit, "Environment")
    drop_ins = [path for path in DROP_INS if path.parent.name == f"{unit.name}.d" and COMMAND in path.read_text()]
    for path in [unit, *drop_ins]:
        assert setting(path, "ExecStart").endswith(" $OPTIONS"), path


def test_the_first_boot_is_done_once_and_what_was_interrupted_is_finished() -> None:
    conditions = settings(FIRST_BOOT, "ConditionPathExists")
    assert f"|!{DEFAULT_FOLDER / RECORD}" in conditions
    assert f"|{DEFAULT_FOLDER / INSTALL}" in conditions
    assert setting(FIRST_BOOT, "Type") == "oneshot"
    assert setting(RENEW, "ConditionPathExists") == str(DEFAULT_FOLDER / RECORD)


def test_the_first_boot_goes_on_trying_without_holding_up_the_boot() -> None:
    assert parsed(FIRST_BOOT).params["wait"] >= 3600
    assert setting(FIRST_BOOT, "TimeoutStartSec") == "infinity"
    assert setting(FIRST_BOOT, "Restart") == "on-failure"
    assert setting(FIRST_BOOT, "StartLimitIntervalSec") == "0"
    assert setting(FIRST_BOOT, "DefaultDependencies") == "no"
    after = " ".join(settings(FIRST_BOOT, "After")).split()
    assert {"network-online.target", "sysinit.target", "basic.target"} <= set(after)
    assert "network-online.target" in setting(FIRST_BOOT, "Wants").split()


@pytest.mark.parametrize("unit", USES_TPM, ids=identifier)
def test_the_tpm_is_waited_for_even_if_the_firmware_does_not_tell_of_it(unit: Path) -> None:
    """A board's driver may come late; tpm2.target, of systemd 256, waits where ACPI or EFI announces a TPM."""
    device = "dev-tpmrm0.device"
    assert {device, "tpm2.target"} <= set(" ".join(settings(unit, "After")).split())
    if unit is not RENEW:  # a timer's, minutes later
        assert device in setting(unit, "Wants").split()


@pytest.mark.parametrize("unit", [unit for unit in USES_TPM if settings(unit, "DeviceAllow")], ids=identifier)
def test_a_tpm_whose_driver_comes_after_the_service_is_not_forbidden_to_it(unit: Path) -> None:
    """A node's name is looked up once, at the start: systemd.resource-control(5), DeviceAllow=."""
    assert settings(unit, "DeviceAllow") == ["char-tpm rw", "/dev/tpmrm0 rw"]


@pytest.mark.parametrize("unit", ON_DEVICE, ids=identifier)
def test_what_runs_on_a_device_shares_one_folder_one_user_and_one_tpm(unit: Path) -> None:
    context = parsed(unit)
    assert context.params["state_dir"] == DEFAULT_FOLDER
    assert context.params["tcti"] == f"device:{setting(unit, 'DeviceAllow').split()[0]}"
    assert (setting(unit, "User"), setting(unit, "SupplementaryGroups")) == ("tpm-mtls", "tss")
    assert (setting(unit, "StateDirectory"), setting(unit, "StateDirectoryMode")) == (DEFAULT_FOLDER.name, "0750")


@pytest.mark.parametrize("unit", [SERVER, PKI], ids=identifier)
def test_server_and_ca_listen_to_the_machine_itself_unless_told_otherwise(unit: Path) -> None:
    assert "LISTEN=127.0.0.1:8443" in settings(unit, "Environment")
    assert setting(unit, "EnvironmentFile").startswith("-/etc/tpm-mtls/")
    assert setting(unit, "Type") == "notify"
    assert int(setting(unit, "WatchdogSec")) >= 30


@pytest.mark.parametrize("unit", [SERVER, PKI], ids=identifier)
def test_server_and_ca_go_on_trying_while_what_they_need_is_away(unit: Path) -> None:
    """Without, systemd gives up at the fifth failure within ten seconds: systemd-system.conf(5)."""
    assert (setting(unit, "Restart"), setting(unit, "StartLimitIntervalSec")) == ("on-failure", "0")
    assert 2 < int(setting(unit, "RestartSec")) <= 30


def test_server_and_ca_have_the_time_and_the_descriptors_that_they_take() -> None:
    assert int(setting(SERVER, "TimeoutStopSec")) > Limits().drain
    assert int(setting(SERVER, "LimitNOFILE")) > Limits().connections
    assert int(setting(PKI, "TimeoutStopSec")) > 2 * ServeOptions().drain_timeout
    assert int(setting(PKI, "LimitNOFILE")) > ServeOptions().connections
    assert AgentLimits().connections < int(setting(ON_DEVICE[-1], "LimitNOFILE"))


def test_server_and_ca_keep_their_files_where_their_commands_look() -> None:
    database = str(parsed(SERVER).params["database"])
    assert database.startswith(f"sqlite:////var/lib/{setting(SERVER, 'StateDirectory')}/")
    assert str(parsed(PKI).params["ca_dir"]) == f"/var/lib/{setting(PKI, 'StateDirectory')}"
    fetched = command(CRL)
    assert fetched[-1] == str(parsed(SERVER).params["crl"])
    assert fetched[-2] in settings(CRL, "ExecStart")[0].split()


@pytest.mark.parametrize("unit", SERVICES, ids=identifier)
def test_each_units_user_and_folder_are_made(unit: Path) -> None:
    user, state = setting(unit, "User"), setting(unit, "StateDirectory")
    assert f"\nu {user} " in (PACKAGING / "sysusers.d" / "tpm-mtls.conf").read_text()
    mode = setting(unit, "StateDirectoryMode")
    assert f"\nd /var/lib/{state} {mode} {user} {user} " in (PACKAGING / "tmpfiles.d" / "tpm-mtls.conf").read_text()


def test_the_server_gets_its_first_crl_at_once_or_as_soon_as_the_ca_is_back() -> None:
    """It refuses all requests until then; a timer's own accuracy is a minute (systemd.timer(5))."""
    timer = CRL.with_suffix(".timer")
    assert setting(timer, "OnActiveSec") == "0"
    assert int(setting(timer, "AccuracySec")) + int(setting(timer, "RandomizedDelaySec")) < 15
    assert (setting(CRL, "Restart"), setting(CRL, "StartLimitIntervalSec")) == ("on-failure", "0")
    assert int(setting(CRL, "RestartSec")) <= 30


def test_a_crl_without_an_end_does_not_fill_the_disk() -> None:
    """A chunked one has no size that curl 7 could look at (curl(1), --max-filesize)."""
    fetching = shlex.split(settings(CRL, "ExecStart")[0])
    assert setting(CRL, "LimitFSIZE") == fetching[fetching.index("--max-filesize") + 1]


@pytest.mark.parametrize("timer", sorted(FOLDER.glob("*.timer")), ids=lambda path: path.stem)
def test_each_timer_has_its_service_and_spreads_a_fleet(timer: Path) -> None:
    assert timer.with_suffix(".service") in SERVICES
    assert setting(timer, "RandomizedDelaySec")


def test_a_device_that_is_on_for_half_an_hour_a_day_renews_its_certificate() -> None:
    timer = RENEW.with_suffix(".timer")
    minutes = sum(int(setting(timer, name).removesuffix("min")) for name in ("OnBootSec", "RandomizedDelaySec"))
    assert minutes <= 20
    assert settings(timer, "OnCalendar") == []
    assert setting(timer, "OnUnitActiveSec") == "1d"
