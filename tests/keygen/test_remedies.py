"""Hints that lead out: typed as they stand, the device has its identity; and what is asked for in vain is told."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, extend, present_state
from tpm_mtls.cli import run
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.states import encode_state
from tpm_mtls_pki import groups
from tpm_mtls_pki.groups import Group

if TYPE_CHECKING:
    from pathlib import Path

    from support.attested import AttestedBench

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bench(attested: AttestedBench) -> AttestedBench:
    """A device that the CA knows, and a CA that takes every policy."""
    with attested.registrar.authority.database.writing() as connection:
        groups.save(connection, Group(groups.DEFAULT, policies=None), now=attested.registrar.clock())
    return attested


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def sign(bench: AttestedBench, operator: Operator, version: int = 1) -> None:
    """Puts a policy for the present state into the identity folder."""
    policy = (*present_state(bench.tpm).pcrs, not_beyond(DEFAULT_COUNTER, version))
    bench.folder.mkdir(exist_ok=True)
    (bench.folder / f"{version}.signed-policy.json").write_bytes(encode(operator.sign(*policy, version=version)))


def typed(hint: str, tcti: str) -> None:
    """Types the commands after the colon of ``hint``."""
    move, enroll = hint.rpartition(": mv ")[2].split("; tpm-mtls ")
    subprocess.run(["mv", *shlex.split(move)], check=True)
    arguments = shlex.split(enroll)
    assert run([*arguments, *([] if "--tcti" in arguments else ["--tcti", tcti])]) == 0


def test_who_lost_the_key_enrolls_anew_by_the_hints_own_words(bench: AttestedBench, capsys: Capture) -> None:
    bench.run()
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")
    assert run(bench.command("first-boot")) == 10
    hint = capsys.readouterr().err.splitlines()[-1]
    folder = bench.folder
    assert hint == (
        f"tpm-mtls: hint: restore the right disk or TPM; or give this identity up: mv {folder} {folder}.old; "
        f"tpm-mtls keygen first-boot --tcti {bench.tpm.tcti} --state-dir {folder} --new-identity "
        f"--ca {bench.host.url} --trust {folder}.old/ca.cert.pem"
    )

    typed(hint, bench.tpm.tcti)

    assert capsys.readouterr().out == "enrolled as sensor-17\n"
    bench.assert_whole()


def test_who_booted_something_else_for_good_enrolls_anew_by_the_hints_own_words(
    bench: AttestedBench, capsys: Capture
) -> None:
    assert run(bench.command("first-boot", "--pcrs", "sha256:0,7")) == 0
    extend(bench.tpm, 7)
    command = ["--state-dir", str(bench.folder), "--tcti", bench.tpm.tcti]
    for verb in (["policy", "check"], ["pcr", "diff"]):
        capsys.readouterr()
        assert run([*verb, *command]) == 4
        hint = capsys.readouterr().err.splitlines()[-1]
        assert hint.startswith(
            "tpm-mtls: hint: boot what it is bound to; if what has been booted is right, enroll anew: mv "
        )
        assert hint.endswith(f" --trust {bench.folder}.old/ca.cert.pem --pcrs sha256:0,7")

    typed(hint, bench.tpm.tcti)

    assert run(["policy", "check", *command]) == 0


def test_a_refused_renewal_names_the_key_to_check(bench: AttestedBench, capsys: Capture) -> None:
    assert run(bench.command("first-boot", "--pcrs", "sha256:0,7")) == 0
    extend(bench.tpm, 7)
    capsys.readouterr()
    assert run(bench.command("renew", "--rotate-key")) == 4
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint.startswith("tpm-mtls: hint: tpm-mtls policy check ")
    assert hint.endswith("--key handle:0x81000100 says what differs from when it was made")


def warned(bench: AttestedBench, capsys: Capture, *options: str) -> list[str]:
    """What a second first boot with ``options`` says besides that the device is enrolled."""
    capsys.readouterr()
    assert run(bench.command("first-boot", *options)) == 0
    out, err = capsys.readouterr()
    assert out == "already enrolled as sensor-17\n"
    return err.splitlines()


def test_another_signer_than_the_keys_is_warned_about(bench: AttestedBench, capsys: Capture, tmp_path: Path) -> None:
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
    ours, other = Operator(tmp_path / "ours"), Operator(tmp_path / "other")
    sign(bench, ours)
    signers = [str(each.public_file) for each in (ours, other)]
    assert run(bench.command("first-boot", "--policy-signer", signers[0])) == 0
    assert warned(bench, capsys, "--policy-signer", signers[0]) == []
    assert warned(bench, capsys) == []

    warning, hint = warned(bench, capsys, "--policy-signer", signers[1])

    assert warning == (
        "tpm-mtls: warning: the key of sensor-17 keeps its policy: "
        f"what the key {ours.signer.name} signs, and not what the key {other.signer.name} signs"
    )
    assert hint == (
        "tpm-mtls: hint: to keep it leave --policy-signer out; for another policy give the identity up: "
        f"mv {bench.folder} {bench.folder}.old; tpm-mtls keygen first-boot --state-dir {bench.folder} --new-identity "
        f"--ca {bench.host.url} --trust {bench.folder}.old/ca.cert.pem --policy-signer {signers[1]}"
    )
    warning, _ = warned(bench, capsys, "--policy-signer", signers[0], "--policy-ref", "web")
    assert warning.endswith(f"and not what the key {ours.signer.name} signs for 'web'")
    warning, _ = warned(bench, capsys, "--pcrs", "sha256:7")
    assert warning.endswith(f"what the key {ours.signer.name} signs, and not what the PCRs are")
    capsys.readouterr()
    assert run(bench.command("first-boot", "--policy-signer", signers[1], "--json")) == 0
    assert json.loads(capsys.readouterr().out)["ignored"].startswith("the key of sensor-17 keeps its policy: ")


def test_other_pcrs_than_the_keys_are_warned_about(
    bench: AttestedBench, operator: Operator, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "state.json").write_bytes(encode_state(present_state(bench.tpm, "sha256:0,7")))
    assert run(bench.command("first-boot", "--pcrs", "sha256:0,7")) == 0
    assert warned(bench, capsys, "--pcrs", "sha256:7,0") == []
    assert warned(bench, capsys, "--pcr-values", str(tmp_path / "state.json")) == []
    extend(bench.tpm, 7)
    assert warned(bench, capsys, "--pcrs", "sha256:0,7") == [], "what was booted is policy check's affair"

    warning, hint = warned(bench, capsys, "--pcrs", "sha256:4")

    assert warning.startswith("tpm-mtls: warning: the key of sensor-17 keeps its policy: PCRs 0, 7 (sha256) as on ")
    assert warning.endswith(", and not sha256:4")
    assert hint.endswith("/ca.cert.pem --pcrs sha256:4")
    (tmp_path / "state.json").write_bytes(encode_state(present_state(bench.tpm, "sha256:0,7")))
    warning, hint = warned(bench, capsys, "--pcr-values", str(tmp_path / "state.json"))
    assert ", and not PCRs 0, 7 (sha256) as on " in warning
    assert hint.endswith(f"--pcr-values {tmp_path / 'state.json'}")
    warning, _ = warned(bench, capsys, "--policy-signer", str(operator.public_file))
    assert warning.endswith(", and not what an operator signs")


def test_a_key_without_a_policy_gets_none(bench: AttestedBench, capsys: Capture) -> None:
    bench.run()
    warning, hint = warned(bench, capsys, "--pcrs", "sha256:7")
    assert warning == "tpm-mtls: warning: the key of sensor-17 has no policy, and gets none"
    assert hint.startswith("tpm-mtls: hint: to keep it leave --pcrs out; for another policy give the identity up: mv ")


def test_a_damaged_policy_cannot_be_compared(bench: AttestedBench, capsys: Capture) -> None:
    assert run(bench.command("first-boot", "--pcrs", "sha256:0,7")) == 0
    [path] = bench.folder.glob("*.policy.json")
    path.write_text("{")
    warning, _ = warned(bench, capsys, "--pcrs", "sha256:0,7")
    assert warning.startswith(
        "tpm-mtls: warning: whether the key of sensor-17 has the policy that was asked for cannot be told: "
    )
    assert "is no usable policy" in warning
