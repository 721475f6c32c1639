"""``tpm-mtls seal --nv``: secrets in the TPM's own memory, for which nothing on a disk is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, extend
from support.seal_command import AUTH, OWNER, SealCommand
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.cli import run
from tpm_mtls.errors import TpmMemoryError
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

SECRET = b"my secret\n"
INDEX = "0x01800001"
_NV_WRITE, _NV_DEFINE = 0x137, 0x12A


pytestmark = pytest.mark.usefixtures("sealing_folder")


def policies(folder: Path) -> list[Path]:
    return list((folder / "state" / "nv-policies").glob("*"))


@pytest.mark.parametrize("size", [1, 768, 769, 2048])
def test_a_secret_comes_back_byte_for_byte(command: SealCommand, size: int) -> None:
    secret = (bytes(range(256)) * 8)[-size:]
    assert command("seal", "--nv", INDEX, given=secret) == b"0x01800001\n"
    assert command("unseal", "--nv", INDEX) == secret


def test_more_than_an_index_holds_is_refused(command: SealCommand, tpm: SimulatedTpm) -> None:
    errors = command.refused("seal", "--nv", INDEX, given=b"x" * 2049, status=2)
    assert "2049 bytes, and this TPM's NV indices 2048 at the most" in errors
    assert INDEX not in [f"0x0{each[2:]}" for each in tpm.handles("nv-index")]


def test_what_is_bound_to_pcrs_stays_closed_when_something_else_was_booted(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    sealed = json.loads(command("seal", "--nv", INDEX, "--pcrs", "sha256:0,2,3,7", "--json", given=SECRET))
    assert policies(tmp_path) == [tmp_path / sealed["policy_file"]]
    assert policies(tmp_path)[0].name == f"{sealed['name']}.policy.json"
    assert command("unseal", "--nv", INDEX) == SECRET
    extend(tpm)
    errors = command.refused("unseal", "--nv", INDEX)
    assert "PCR 7 (sha256) differs" in errors
    assert "0x99d" in errors


def test_its_name_is_what_the_tpm_calls_it(command: SealCommand, tpm: SimulatedTpm) -> None:
    sealed = json.loads(command("seal", "--nv", INDEX, "--json", given=SECRET))
    assert f"name: {sealed['name']}" in tpm.tool("tpm2_nvreadpublic", INDEX).stdout


def test_at_boot_no_file_is_needed(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    command("seal", "--nv", INDEX, "--pcrs", "sha256:0,7", given=SECRET)
    policies(tmp_path)[0].unlink()
    assert "nothing says which" in command.refused("unseal", "--nv", INDEX, status=5)
    assert command("unseal", "--nv", INDEX, "--pcrs", "sha256:0,7") == SECRET
    assert "0x99d" in command.refused("unseal", "--nv", INDEX, "--pcrs", "sha256:0")
    extend(tpm)
    errors = command.refused("unseal", "--nv", INDEX, "--pcrs", "sha256:0,7")
    assert "the PCRs sha256:0,7 have other values now than when it was sealed (TPM_RC_POLICY_FAIL, 0x99d)" in errors


def test_a_policy_is_remembered_in_any_form(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    assert run(["policy", "record", "--pcrs", "sha256:7", "--out", "state.json"]) == 0
    command("seal", "--nv", INDEX, "--pcr-values", "state.json", given=SECRET)
    policies(tmp_path)[0].rename(tmp_path / "policy.json")
    for given in (("--pcr-values", "state.json"), ("--policy", "policy.json")):
        assert command("unseal", "--nv", INDEX, *given).endswith(SECRET)
    extend(tpm)
    for given in (("--pcr-values", "state.json"), ("--policy", "policy.json")):
        assert "PCR 7 (sha256) differs" in command.refused("unseal", "--nv", INDEX, *given)
    assert run(["policy", "record", "--pcrs", "sha256:7", "--out", "other.json"]) == 0
    command.capfdbinary.readouterr()
    errors = command.refused("unseal", "--nv", INDEX, "--pcr-values", "other.json", status=5)
    assert "the policy that was given is not its own" in errors


def test_what_an_operator_signs_opens_it(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    Operator(tmp_path)
    wish = ("--policy-signer", "operator.pem", "--policy-ref", "disk")
    command("seal", "--nv", INDEX, *wish, "--counter", "none", given=SECRET)
    signing = ["--signer", "operator.key.pem", "--pcrs", "sha256:7", "--policy-ref", "disk", "--counter", "none"]
    assert run(["policy", "sign", *signing, "--version", "1", "--out", "state/one.signed-policy.json"]) == 0
    command.capfdbinary.readouterr()
    assert command("unseal", "--nv", INDEX) == SECRET
    policies(tmp_path)[0].unlink()
    assert command("unseal", "--nv", INDEX, *wish) == SECRET
    errors = command.refused("unseal", "--nv", INDEX, "--policy-signer", "operator.pem", status=5)
    assert "the policy that was given is not its own" in errors
    extend(tpm)
    assert "PCR 7 (sha256) differs" in command.refused("unseal", "--nv", INDEX, *wish)


@pytest.mark.parametrize("policy", [[], ["--pcrs", "sha256:7"]], ids=["alone", "with PCRs"])
def test_an_authorization_value_is_needed(command: SealCommand, tmp_path: Path, policy: list[str]) -> None:
    command("seal", "--nv", INDEX, "--auth", "file:auth", *policy, given=SECRET)
    assert command("unseal", "--nv", INDEX, "--auth", "file:auth") == SECRET
    for value in ([], ["--auth", "file:wrong"]):
        errors = command.refused("unseal", "--nv", INDEX, *value)
        assert "wrong authorization value" in errors
        assert "0x98e" in errors
    if policy:
        policies(tmp_path)[0].unlink()
        assert command("unseal", "--nv", INDEX, "--auth", "file:auth", *policy) == SECRET


def test_an_occupied_index_stays_as_it_is(command: SealCommand, tmp_path: Path) -> None:
    command("seal", "--nv", INDEX, given=SECRET)
    errors = command.refused("seal", "--nv", INDEX, "--pcrs", "sha256:7", given=b"another", status=10)
    assert f"the NV index {INDEX} is occupied" in errors
    assert command("unseal", "--nv", INDEX) == SECRET
    assert policies(tmp_path) == []


def test_what_an_interrupted_seal_left_is_told(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    """Killed between the two: the index is there, and nothing in it. It is not taken for anything else."""
    command.seal(SECRET)
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(_NV_DEFINE, signal.SIGKILL)
    seal = ["seal", "--state-dir", "state", "--nv", INDEX, "--tcti", proxy.tcti]
    killed = subprocess.run([sys.executable, "-m", "tpm_mtls", *seal], input=SECRET, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert "nothing was ever written" in command.refused("unseal", "--nv", INDEX)
    errors = command.refused("seal", "--nv", INDEX, given=SECRET, status=10)
    assert "is occupied\ntpm-mtls: hint: nothing was ever written to it" in errors
    tpm.tool("tpm2_nvundefine", INDEX)
    command("seal", "--nv", INDEX, given=SECRET)


@pytest.mark.parametrize("answered", ["define", "write"])
def test_what_cannot_be_written_leaves_nothing(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path, answered: str
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(_NV_DEFINE if answered == "define" else _NV_WRITE, 0x14B)
    errors = command.refused("seal", "--nv", INDEX, "--pcrs", "sha256:7", "--tcti", proxy.tcti, given=SECRET)
    assert "NV memory is full" in errors
    assert "0x14b" in errors
    assert policies(tmp_path) == []
    command("seal", "--nv", INDEX, given=SECRET)


def test_when_the_memory_is_full_it_is_said(command: SealCommand, tpm: SimulatedTpm) -> None:
    command.seal(SECRET)
    with open_tpm(tpm.tcti) as opened, suppress(TpmMemoryError):
        for number in range(1000):
            opened.nv.define(0x01800100 + number, 2048)
    errors = command.refused("seal", "--nv", INDEX, given=b"x" * 2048)
    assert "NV memory is full" in errors
    assert "0x14b" in errors


def test_what_was_never_written_is_said_to_be_so(command: SealCommand, tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_nvdefine", "--size", "10", INDEX)
    errors = command.refused("unseal", "--nv", INDEX)
    assert "nothing was ever written" in errors
    assert "tpm2_nvundefine" in errors


def test_what_is_not_there_is_said_to_be_so(command: SealCommand) -> None:
    assert "the TPM has nothing at that handle" in command.refused("unseal", "--nv", INDEX)


def test_the_owner_makes_the_index(command: SealCommand, tpm: SimulatedTpm) -> None:
    command.seal(SECRET)
    tpm.tool("tpm2_changeauth", "-c", "owner", OWNER)
    assert "--owner-auth" in command.refused("seal", "--nv", INDEX, given=SECRET)
    command("seal", "--nv", INDEX, "--owner-auth", "file:owner", given=SECRET)
    assert command("unseal", "--nv", INDEX) == SECRET
    overwriting = tpm.tool("tpm2_nvwrite", "-C", INDEX, "--input", "/etc/hostname", INDEX, check=False)
    assert overwriting.returncode != 0


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("1800001", "not an NV index"),
        ("0x", "not an NV index"),
        ("0x018000011", "not an NV index"),
        ("0x81000001", "kept for something else"),
        ("0x01c00002", "kept for something else"),
        ("0x01520042", "kept for something else"),
        ("0x01500000", "kept for something else"),
    ],
)
def test_indices_that_are_not_for_it_are_refused(command: SealCommand, index: str, why: str) -> None:
    assert why in command.refused("seal", "--nv", index, given=SECRET, status=2)
    assert why in command.refused("unseal", "--nv", index, status=2)


def test_how_many_commands_it_takes(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    command("seal", "--nv", INDEX, "--pcrs", "sha256:7", given=SECRET)
    trace = CommandTrace(tpm, tmp_path, command.monkeypatch)
    assert command("unseal", "--nv", INDEX, "--tcti", trace.tcti) == SECRET
    assert trace.commands() == ["NV_ReadPublic", "ReadPublic", "StartAuthSession", "PolicyPCR", "NV_Read"]


def test_neither_secret_nor_value_crosses_the_bus(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    trace = CommandTrace(tpm, tmp_path, command.monkeypatch)
    where = ("--nv", INDEX, "--tcti", trace.tcti, "--auth", "file:auth")
    secret = b"a secret that nobody shall see"
    command("seal", *where, given=secret)
    trace.restart()
    assert command("unseal", *where) == secret
    captured = [path.read_bytes() for path in tmp_path.glob("commands-*.pcapng")]
    assert len(captured) == 2
    for each in captured:
        assert secret not in each
        assert AUTH.encode() not in each
