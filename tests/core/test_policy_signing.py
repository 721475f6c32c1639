"""What an operator signs: a TPM verifies it; nothing changed, and nobody else's, does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from support.policies import Operator, pcr_policy, rsa_key
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import CredentialError, PemError, PolicyError, StorageError, UsageError
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond, parse_counter
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthValue
from tpm_mtls.policy.signing import (
    check_reference,
    read_signer,
    read_signing_key,
    sign_policy,
    verify_signed_policy,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_tpm_verifies_the_signature(tpm: SimulatedTpm, tmp_path: Path, kind: str) -> None:
    operator = Operator(tmp_path, key=rsa_key() if kind == "rsa" else None)
    signed = operator.sign(pcr_policy(), policy_ref=b"web")
    verify_signed_policy(signed, operator.signer)
    (tmp_path / "message").write_bytes(policy_digest([pcr_policy()]) + b"web")
    (tmp_path / "signature").write_bytes(bytes.fromhex(signed.signature))
    tpm.tool("tpm2_loadexternal", "-C", "o", "-G", kind, "-u", "operator.pem", "-c", "operator.ctx", cwd=tmp_path)
    verify = ("tpm2_verifysignature", "-c", "operator.ctx", "-g", "sha256", "-m", "message", "-s", "signature")
    tpm.tool(*verify, cwd=tmp_path)
    (tmp_path / "message").write_bytes(policy_digest([pcr_policy()]) + b"mail")
    assert tpm.tool(*verify, check=False, cwd=tmp_path).returncode != 0
    tpm.flush()


def test_nothing_changed_verifies(operator: Operator) -> None:
    signed = operator.sign(pcr_policy(), not_beyond(DEFAULT_COUNTER, 5), version=5, policy_ref=b"web")
    verify_signed_policy(signed, operator.signer)
    flipped = signed.signature[:-2] + f"{int(signed.signature[-2:], 16) ^ 1:02x}"
    for changes, message in (
        ({"policy": (pcr_policy(),)}, "was changed after it was signed"),
        ({"digest": "00" * 32}, "was changed after it was signed"),
        ({"policy_ref": b"mail".hex()}, "the signature of the file is wrong"),
        ({"signature": flipped}, "the signature of the file is wrong"),
        ({"signature": ""}, "the signature of the file is wrong"),
        ({"signer": "000b" + "00" * 32}, "the file is signed by another key: 000b0000"),
    ):
        with pytest.raises(PolicyError, match=message):
            verify_signed_policy(msgspec.structs.replace(signed, **changes), operator.signer, name="the file")


def test_another_operators_signature_does_not_verify(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Operator(tmp_path / "other")
    signed = other.sign(pcr_policy())
    with pytest.raises(PolicyError, match="is signed by another key"):
        verify_signed_policy(signed, operator.signer)
    renamed = msgspec.structs.replace(signed, signer=operator.signer.name)
    with pytest.raises(PolicyError, match="the signature of the signed policy is wrong"):
        verify_signed_policy(renamed, operator.signer)
    mixed = msgspec.structs.replace(operator.signer, public=other.signer.public)
    with pytest.raises(PolicyError, match="is signed by another key"):
        verify_signed_policy(renamed, mixed)


def test_a_signature_with_another_hash_is_none_that_the_tpm_takes(operator: Operator) -> None:
    """TPM2_PolicyAuthorize computes the digest with the signer's nameAlg, SHA-256."""
    signed = operator.sign(pcr_policy())
    assert isinstance(operator.key, ec.EllipticCurvePrivateKey)
    parts = decode_dss_signature(operator.key.sign(bytes.fromhex(signed.digest), ec.ECDSA(hashes.SHA384())))
    with_sha384 = "0018000c" + "".join(f"0020{part:064x}" for part in parts)
    with pytest.raises(PolicyError, match="the signature of the signed policy is wrong"):
        verify_signed_policy(msgspec.structs.replace(signed, signature=with_sha384), operator.signer)


def test_only_what_can_be_signed_for_is(operator: Operator) -> None:
    with pytest.raises(PolicyError, match="about PCRs and the counter only"):
        operator.sign(PolicyAuthValue())
    with pytest.raises(PolicyError, match="it is version 5, but holds the counter against another one"):
        operator.sign(not_beyond(DEFAULT_COUNTER, 4), version=5)
    with pytest.raises(UsageError, match="more than 32 bytes"):
        sign_policy(operator.key, [pcr_policy()], policy_ref=b"x" * 33, version=1)
    assert check_reference(b"x" * 32) == b"x" * 32


def test_keys_are_read_from_pem_files(tmp_path: Path) -> None:
    passphrase = b"right horse"
    operator = Operator(tmp_path, passphrase=passphrase)
    assert read_signer(operator.public_file) == operator.signer
    key = read_signing_key(operator.key_file, passphrase=Secret(passphrase))
    assert key.public_key() == operator.key.public_key()
    with pytest.raises(UsageError, match="is encrypted"):
        read_signing_key(operator.key_file)
    with pytest.raises(PemError, match="is damaged, or the passphrase is wrong"):
        read_signing_key(operator.key_file, passphrase=Secret(b"wrong"))
    plain = Operator(tmp_path)
    with pytest.raises(UsageError, match="is not encrypted"):
        read_signing_key(plain.key_file, passphrase=Secret(passphrase))
    with pytest.raises(PemError, match="is a private key"):
        read_signer(plain.key_file)
    with pytest.raises(PemError, match="holds no private key"):
        read_signing_key(plain.public_file)
    plain.public_file.write_text("x")
    with pytest.raises(PemError, match="holds no public key"):
        read_signer(plain.public_file)
    with pytest.raises(StorageError, match="cannot read"):
        read_signer(tmp_path / "gone")


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - it is refused
    ],
    ids=["P-384", "Ed25519", "RSA-1024"],
)
def test_other_kinds_of_keys_are_refused(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for read in (read_signing_key, read_signer):
        with pytest.raises(CredentialError, match="by which no policies are signed"):
            read(private if read is read_signing_key else public)


def test_counters_are_named_by_their_index() -> None:
    assert parse_counter("0x01500100") == DEFAULT_COUNTER
    assert parse_counter("none") is None
    for text in ("", "1500100", "0x81000000", "0x1500100"):
        with pytest.raises(UsageError, match="not an NV index"):
            parse_counter(text)
