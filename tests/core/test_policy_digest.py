"""Digests of policies are those that a TPM computes: asked by tpm2-tools in trial sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.policies import Operator, extend, pcr_policy, present_state, rsa_key, trial_digest
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr
from tpm_mtls.policy.states import any_of
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

PCR = ("tpm2_policypcr", "-S", "SESSION", "-l")
AUTH_VALUE = ("tpm2_policyauthvalue", "-S", "SESSION")


def test_pcrs(tpm: SimulatedTpm, tmp_path: Path) -> None:
    extend(tpm, 2)
    state = present_state(tpm, "sha256:0,2,7,23")
    assert policy_digest(state.pcrs) == trial_digest(tpm, tmp_path, [[*PCR, "sha256:0,2,7,23"]])
    assert policy_digest(state.pcrs) != policy_digest(present_state(tpm, "sha256:0,2,7,22").pcrs)


def test_pcrs_and_the_authorization_value(tpm: SimulatedTpm, tmp_path: Path) -> None:
    policy = (*present_state(tpm, "sha256:7").pcrs, PolicyAuthValue())
    assert policy_digest(policy) == trial_digest(tpm, tmp_path, [[*PCR, "sha256:7"], AUTH_VALUE])


def test_one_of_several_states(tpm: SimulatedTpm, tmp_path: Path) -> None:
    before = present_state(tpm)
    first = trial_digest(tpm, tmp_path, [[*PCR, "sha256:0,2,7"]])
    extend(tpm, 7)
    after = present_state(tpm)
    second = trial_digest(tpm, tmp_path, [[*PCR, "sha256:0,2,7"]])
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "second").write_bytes(second)
    expected = trial_digest(tpm, tmp_path, [["tpm2_policyor", "-S", "SESSION", "sha256:first,second"]])
    assert policy_digest(any_of([before, after])) == expected
    assert policy_digest(any_of([after, before])) != expected


def test_a_counter(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        assert opened.counters.make(DEFAULT_COUNTER) == 1
    (tmp_path / "operand").write_bytes((5).to_bytes(8, "big"))
    index = f"{DEFAULT_COUNTER:#x}"
    command = ["tpm2_policynv", "-S", "SESSION", "-C", index, "-i", "operand", index, "ule"]
    assert policy_digest([not_beyond(DEFAULT_COUNTER, 5)]) == trial_digest(tpm, tmp_path, [command])
    assert not_beyond(DEFAULT_COUNTER, 5).version == 5


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
@pytest.mark.parametrize("policy_ref", [b"", b"update"])
def test_what_an_operator_signs(tpm: SimulatedTpm, tmp_path: Path, kind: str, policy_ref: bytes) -> None:
    """The signer's Name is the one that tpm2_loadexternal gives to its PEM file."""
    operator = Operator(tmp_path, key=rsa_key() if kind == "rsa" else None)
    load = (
        "tpm2_loadexternal",
        "-C",
        "o",
        "-G",
        kind,
        "-u",
        "operator.pem",
        "-c",
        "operator.ctx",
        "-n",
        "operator.name",
    )
    tpm.tool(*load, cwd=tmp_path)
    tpm.flush()
    assert (tmp_path / "operator.name").read_bytes().hex() == operator.signer.name
    (tmp_path / "approved").write_bytes(policy_digest([pcr_policy()]))
    (tmp_path / "ref").write_bytes(policy_ref)
    authorize = ["tpm2_policyauthorize", "-S", "SESSION", "-i", "approved", "-n", "operator.name"]
    qualification = ["-q", "ref"] if policy_ref else []
    expected = trial_digest(tpm, tmp_path, [[*authorize, *qualification]])
    assert policy_digest([operator.authorize(policy_ref)]) == expected


def test_a_signer_whose_point_begins_with_a_zero(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """One key in 128: its coordinates keep their size, without which a TPM refuses the key."""
    key = next(
        key for number in range(1, 2000) if _begins_with_zero(key := ec.derive_private_key(number, ec.SECP256R1()))
    )
    operator = Operator(tmp_path, key=key)
    load = (
        "tpm2_loadexternal",
        "-C",
        "o",
        "-G",
        "ecc",
        "-u",
        "operator.pem",
        "-c",
        "operator.ctx",
        "-n",
        "operator.name",
    )
    tpm.tool(*load, cwd=tmp_path)
    tpm.flush()
    assert (tmp_path / "operator.name").read_bytes().hex() == operator.signer.name


def _begins_with_zero(key: ec.EllipticCurvePrivateKey) -> bool:
    point = key.public_key().public_numbers()
    return min(point.x, point.y) >> 248 == 0


def test_or_replaces_and_the_rest_is_added(tpm: SimulatedTpm, tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(policy_digest([PolicyAuthValue()]))
    (tmp_path / "second").write_bytes(policy_digest([pcr_policy()]))
    policy_or = PolicyOr(branches=((PolicyAuthValue(),), (pcr_policy(),)))
    commands = [["tpm2_policyor", "-S", "SESSION", "sha256:first,second"], AUTH_VALUE]
    assert policy_digest([policy_or, PolicyAuthValue()]) == trial_digest(tpm, tmp_path, commands)
