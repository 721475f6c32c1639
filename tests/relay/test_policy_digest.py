"""The relay and the TPM's trial sessions agree on what a policy leads to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.relay_policies import PolicyWorkshop
from tpm_mtls_relay.policies.digest import approval_digest, name_of, policy_digest
from tpm_mtls_relay.policies.fields import PolicyFileError
from tpm_mtls_relay.policies.file import parse_key_policy, parse_signed_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

AUTH_VALUE = {"type": "auth-value"}


def digest_of(policy: list[dict[str, Any]], algorithm: str = "sha256") -> bytes:
    data = json.dumps({"format": 1, "name": "000b" + "00" * 32, "policy": policy}).encode()
    return policy_digest(parse_key_policy(data)[1], algorithm)


POLICIES: dict[str, Callable[[PolicyWorkshop], list[dict[str, Any]]]] = {
    "pcr": lambda workshop: [workshop.pcr(0, 7, 23)],
    "banks": lambda workshop: [workshop.pcr(0), workshop.pcr(8, bank="sha1"), workshop.pcr(16, bank="sha512")],
    "auth-value": lambda workshop: [workshop.pcr(0), AUTH_VALUE],
    "nv": lambda workshop: [workshop.pcr(0), workshop.counter()],
    "or": lambda workshop: [
        {"type": "or", "branches": [[workshop.pcr(pcr)] for pcr in range(8)]},
        AUTH_VALUE,
    ],
    "nested": lambda workshop: [
        {
            "type": "or",
            "branches": [
                [AUTH_VALUE],
                [{"type": "or", "branches": [[workshop.pcr(1)], [AUTH_VALUE]]}, workshop.pcr(2)],
            ],
        }
    ],
    "authorize": lambda workshop: [workshop.authorize(workshop.operator("rsa")), workshop.pcr(3)],
    "reference": lambda workshop: [workshop.authorize(workshop.operator(), b"fleet 7"), AUTH_VALUE],
}


@pytest.mark.parametrize("kind", POLICIES)
def test_the_tpm_comes_to_the_same_digest(tpm: SimulatedTpm, tmp_path: Path, kind: str) -> None:
    workshop = PolicyWorkshop(tpm, tmp_path, tmp_path)
    policy = POLICIES[kind](workshop)
    assert digest_of(policy) == workshop.digest(policy)


def test_the_algorithm_is_the_keys(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_startauthsession", "-S", "trial.ctx", "-g", "sha384", cwd=tmp_path)
    tpm.tool("tpm2_policyauthvalue", "-S", "trial.ctx", "-L", "digest", cwd=tmp_path)
    tpm.tool("tpm2_flushcontext", "trial.ctx", cwd=tmp_path)
    assert digest_of([AUTH_VALUE], "sha384") == (tmp_path / "digest").read_bytes()


def test_a_pcr_digest_of_another_algorithm_is_refused() -> None:
    pcr = {"type": "pcr", "bank": "sha256", "pcrs": [0], "digest": "00" * 32}
    assert len(digest_of([pcr])) == 32
    with pytest.raises(PolicyFileError, match="has 32 bytes, not 48"):
        digest_of([pcr], "sha384")


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_the_signers_name_is_the_tpms(tpm: SimulatedTpm, tmp_path: Path, kind: str) -> None:
    operator = PolicyWorkshop(tpm, tmp_path, tmp_path).operator(kind)
    assert name_of(operator.public) == operator.name
    assert name_of(operator.public[:-1] + bytes([operator.public[-1] ^ 1])) != operator.name


@pytest.mark.parametrize("public", [b"", b"\x00\x23", b"\x00\x23\x00\x10" + bytes(20)])
def test_what_has_no_name_algorithm_has_no_name(public: bytes) -> None:
    assert name_of(public) == b""


def test_openssl_signs_what_the_tpm_verifies(tpm: SimulatedTpm, tmp_path: Path) -> None:
    workshop = PolicyWorkshop(tpm, tmp_path, tmp_path)
    path = workshop.approve(workshop.operator(), [workshop.pcr(0)], policy_ref=b"fleet 7")
    signed = parse_signed_policy(path.read_bytes())
    (tmp_path / "message").write_bytes(signed.digest + b"fleet 7")
    said = tpm.tool("sha256sum", "message", cwd=tmp_path).stdout.split()[0]
    assert approval_digest(signed).hex() == said
