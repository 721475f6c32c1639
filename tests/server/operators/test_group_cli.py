"""``tpm-mtls server group``: what devices are held against, as an operator types it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.attesting_device import AttestingDevice, boot_of
from support.policies import RECORDED, Operator
from support.terminal import on_a_terminal
from tpm_mtls.cli import run
from tpm_mtls.errors import UsageError
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.states import encode_state, state_of
from tpm_mtls_server.database import Database
from tpm_mtls_server.operators.group_cli import parse_pcrs
from tpm_mtls_server.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.attesting_device import Boot
    from support.backend import BackendThread
    from tpm_mtls.policy.states import MachineState

    Command: TypeAlias = Callable[..., Any]

OLD, NEW = boot_of("vmlinuz-6.12"), boot_of("vmlinuz-6.18")


@pytest.fixture
def group(server_command: Callable[[str], Command]) -> Command:
    return server_command("group")


def state(boot: Boot, description: str = "", *, pcrs: tuple[int, ...] = (4, 8, 9)) -> MachineState:
    values = {"sha256": {pcr: boot.values["sha256"][pcr] for pcr in pcrs}}
    return state_of(values, now=RECORDED, description=description)


def write_state(folder: Path, name: str, boot: Boot) -> str:
    path = folder / f"{name}.json"
    path.write_bytes(encode_state(state(boot, name)))
    return str(path)


def test_at_first_there_is_the_group_default_which_learns(group: Command) -> None:
    """Before the server ran for the first time, too: a fleet is prepared before it comes."""
    assert group("set", "default", "--mode", "learn") == {
        "name": "default",
        "mode": "learn",
        "pcrs": [],
        "references": [],
    }
    assert group("list") == {"groups": [{"name": "default", "mode": "learn", "pcrs": []}]}
    assert group("list", text=True) == "default\tlearn\t0-15\n"


def test_what_is_not_given_stays(group: Command) -> None:
    group("set", "gateways", "--mode", "approve", "--pcrs", "0,2,4-7")
    assert group("set", "gateways")["pcrs"] == [0, 2, 4, 5, 6, 7]
    assert group("set", "gateways", "--mode", "values")["pcrs"] == [0, 2, 4, 5, 6, 7]
    assert group("set", "gateways", "--pcrs", "0-15")["pcrs"] == []
    assert group("show", "gateways", text=True) == "gateways: values\n  PCRs: 0 to 15\n"


def test_on_a_terminal_the_list_is_a_table(group: Command, database: str) -> None:
    group("set", "gateways", "--pcrs", "7")
    command = [sys.executable, "-m", "tpm_mtls", "server", "group", "list", "--database", database]
    shown = [line.split() for line in on_a_terminal(command) if line.strip()]
    assert shown[0] == ["group", "mode", "PCRs"]
    assert shown[-1] == ["gateways", "learn", "7"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "gateways"], 10, "there is no group 'gateways'"),
        (["set", "Gate ways"], 2, "not a group's name: 'Gate ways'"),
        (["set", "gateways", "--pcrs", "16"], 2, "a quote signs the PCRs 0 to 15"),
        (["set", "gateways", "--pcrs", ""], 2, "not a list of PCRs: ''"),
        (["set", "gateways", "--mode", "trust"], 2, "'trust' is not one of"),
        (["set", "gateways", "--remove", "9"], 10, "there is no reference 9"),
        (["set", "gateways", "--add-values", "missing.json"], 8, "cannot read missing.json"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], status: int, message: str, group: Command) -> None:
    group("set", "default")
    assert message in group(*arguments, status=status)


def test_where_nothing_is_there_looking_makes_nothing(group: Command, tmp_path: Path) -> None:
    assert "there is no database" in group("list", status=10)
    assert not (tmp_path / "telemetry.db").exists()


def test_devices_are_held_against_values(
    backend: BackendThread, group: Command, machine: AttestingDevice, tmp_path: Path
) -> None:
    old = write_state(tmp_path, "old", OLD)
    facts = group("set", "default", "--mode", "values", "--add-values", old)
    assert [each["kind"] for each in facts["references"]] == ["values"]
    assert machine.attest(backend.port, OLD)["trusted"]
    refused = machine.attest(backend.port, NEW)
    assert refused["check"] == 9
    assert "if that was a change of yours: tpm-mtls server group set" in refused["reason"]
    group("set", "default", "--add-values", write_state(tmp_path, "new", NEW))
    assert machine.attest(backend.port, NEW)["trusted"]
    text = group("show", "default", text=True)
    assert "  1: values 'old': PCRs 4, 8, 9 (sha256) as on 2026-11-22T03:00:00Z (added " in text
    group("set", "default", "--remove", "1")
    assert machine.attest(backend.port, OLD)["check"] == 9
    assert machine.attest(backend.port, NEW)["trusted"]


def test_a_reference_is_added_once(group: Command, tmp_path: Path) -> None:
    old = write_state(tmp_path, "old", OLD)
    group("set", "default", "--add-values", old)
    assert "has that reference already" in group("set", "default", "--add-values", old, status=10)
    assert "is no recorded state" in group("set", "default", "--add-values", _file(tmp_path, b"{}"), status=5)


def test_devices_are_held_against_what_an_operator_signed(
    backend: BackendThread, group: Command, machine: AttestingDevice, tmp_path: Path
) -> None:
    operator = Operator(tmp_path)
    signed = _file(tmp_path, encode(operator.sign(*state(NEW).pcrs, version=42, description="image 42")))
    assert "whose key the group does not have" in group("set", "default", "--add-signed", signed, status=5)
    options = ["--mode", "signed", "--add-signer", str(operator.public_file), "--add-signed", signed]
    facts = group("set", "default", *options)
    assert [each["kind"] for each in facts["references"]] == ["signer", "signed"]
    assert machine.attest(backend.port, NEW)["trusted"]
    assert machine.attest(backend.port, OLD)["check"] == 9
    text = group("show", "default", text=True)
    assert f"signer {operator.signer.name} (added " in text
    assert "signed policy 'image 42', version 42: PCRs 4, 8, 9 (sha256) as on" in text


def test_a_policy_that_was_changed_after_it_was_signed_is_refused(group: Command, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    group("set", "default", "--add-signer", str(operator.public_file))
    good = operator.sign(*state(NEW).pcrs)
    bad = msgspec.structs.replace(good, policy=state(OLD).pcrs)
    assert "was changed after it was signed" in group(
        "set", "default", "--add-signed", _file(tmp_path, encode(bad)), status=5
    )
    (tmp_path / "other").mkdir()
    other = Operator(tmp_path / "other")
    forged = msgspec.structs.replace(other.sign(*state(NEW).pcrs), signer=operator.signer.name)
    refused = group("set", "default", "--add-signed", _file(tmp_path, encode(forged)), status=5)
    assert "signature" in refused
    assert len(group("show", "default")["references"]) == 1


def test_a_private_key_is_not_kept(group: Command, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    assert "is a private key" in group("set", "default", "--add-signer", str(operator.key_file), status=5)


def test_who_changed_a_group_is_in_the_audit_log(
    backend: BackendThread, group: Command, database: str, tmp_path: Path
) -> None:

    assert backend.port
    group("set", "gateways", "--add-values", write_state(tmp_path, "old", OLD), "--by", "alice@example.com")
    rows = Registry(Database(database)).audit("group:gateways")
    assert [(row.event, row.actor) for row in rows] == [
        ("reference-added", "alice@example.com"),
        ("group-set", "alice@example.com"),
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", (0,)), ("7,0", (0, 7)), ("0, 2,4-7", (0, 2, 4, 5, 6, 7)), ("0-15", ()), ("0-7,8-15", ()), ("16", (16,))],
)
def test_lists_of_pcrs(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_pcrs(text) == numbers


@pytest.mark.parametrize("text", ["", ",", "a", "-1", "7-4", "1-", "100", "0,,2", "sha256:0"])
def test_no_list_of_pcrs(text: str) -> None:
    with pytest.raises(UsageError, match="not a list of PCRs"):
        parse_pcrs(text)


@given(st.text(alphabet="0123456789,- a", max_size=20))
def test_any_text_is_a_list_of_pcrs_or_one_error(text: str) -> None:
    try:
        found = parse_pcrs(text)
    except UsageError:
        return
    assert list(found) == sorted(set(found))
    assert all(0 <= pcr <= 99 for pcr in found)


@pytest.mark.parametrize("verb", ["list", "show", "set"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["server", "group", verb, "--help"]) == 0
    assert f"Example: tpm-mtls server group {verb}" in capsys.readouterr().out


def _file(folder: Path, content: bytes) -> str:
    path = folder / "given.json"
    path.write_bytes(content)
    return str(path)
