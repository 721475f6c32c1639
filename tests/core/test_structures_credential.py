"""Credentials that only one TPM opens: made here, opened by a simulated TPM, and compared with tpm2-tools."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.attestation import SOME_NAME, public_area
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures import (
    EkTemplate,
    PublicArea,
    check_credential_key,
    ek_public,
    make_credential,
    parse_public_area,
)
from tpm_mtls.structures.credential import CREDENTIAL_LIMIT, ENCRYPTED_SECRET_LIMIT, SECRET_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

_HEADER = bytes.fromhex("badcc0de00000001")  # tpm2-tools puts it before a credential
BORN = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth"
EK_HANDLES = {EkTemplate.RSA_2048: "0x81010001", EkTemplate.HIGH_ECC_P384: "0x81010016"}


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


P256_EK = ek_public(EkTemplate.ECC_P256, spki(ec.generate_private_key(ec.SECP256R1())))


def make_keys(tpm: SimulatedTpm, folder: Path, template: EkTemplate | None) -> tuple[PublicArea, bytes, str]:
    """An attestation key, and the EK of ``template`` (L-2's made anew); returns EK, AK Name, EK's context."""

    def tool(*command: str) -> None:
        tpm.tool(*command, cwd=folder)
        tpm.flush()

    ek = EK_HANDLES.get(template, "ek") if template else "ek"
    if ek == "ek":
        tool("tpm2_createek", "-G", "ecc", "-c", "ek", "-u", "ek.tpm2b")
    tool("tpm2_readpublic", "-c", ek, "-o", "ek.pub")
    tool("tpm2_createprimary", "-C", "o", "-c", "primary")
    parts = ("-u", "ak.pub", "-r", "ak.priv")
    tool("tpm2_create", "-C", "primary", "-G", "ecc:ecdsa-sha256:null", "-a", f"{BORN}|restricted|sign", *parts)
    tool("tpm2_load", "-C", "primary", *parts, "-c", "ak", "-n", "ak.name")
    public = parse_public_area((folder / "ek.pub").read_bytes()[2:])
    return public, (folder / "ak.name").read_bytes(), ek


def activate(tpm: SimulatedTpm, folder: Path, ek: str, credential: bytes) -> bytes | None:
    """The secret that TPM2_ActivateCredential gives; none if the TPM refuses."""
    (folder / "credential").write_bytes(credential)
    session: tuple[str, ...] = ()
    if ek != EK_HANDLES[EkTemplate.HIGH_ECC_P384]:  # that one has userWithAuth
        tpm.tool("tpm2_startauthsession", "--policy-session", "-S", "session", cwd=folder)
        tpm.tool("tpm2_policysecret", "-S", "session", "-c", "e", cwd=folder)
        session = ("-P", "session:session")
    done = tpm.tool(
        "tpm2_activatecredential", "-c", "ak", "-C", ek, "-i", "credential", "-o", "secret", *session,
        cwd=folder, check=False,
    )  # fmt: skip
    if session:
        tpm.tool("tpm2_flushcontext", "session", cwd=folder)
    tpm.flush()
    return (folder / "secret").read_bytes() if done.returncode == 0 else None


def test_a_tpm_opens_what_was_made_for_its_two_certified_keys(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    tpm = make_tpm(ek_certificates=True)
    secret = secrets.token_bytes(SECRET_LENGTH)
    for number, template in enumerate(EK_HANDLES):
        folder = tmp_path / str(number)
        folder.mkdir()
        public, name, ek = make_keys(tpm, folder, template)
        blob, encrypted = make_credential(public, name, secret)
        assert (len(blob) <= CREDENTIAL_LIMIT, len(encrypted) <= ENCRYPTED_SECRET_LIMIT) == (True, True)
        assert activate(tpm, folder, ek, _HEADER + blob + encrypted) == secret
        for_another, encrypted = make_credential(public, name[:-1] + bytes([name[-1] ^ 1]), secret)
        assert activate(tpm, folder, ek, _HEADER + for_another + encrypted) is None


def test_a_tpm_opens_what_was_made_for_a_p256_key_and_no_other_tpm_does(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    tpm = make_tpm()
    public, name, ek = make_keys(tpm, tmp_path, None)
    secret = secrets.token_bytes(SECRET_LENGTH)
    blob, encrypted = make_credential(public, name, secret)
    assert activate(tpm, tmp_path, ek, _HEADER + blob + encrypted) == secret
    blob, encrypted = make_credential(P256_EK, name, secret)
    assert activate(tpm, tmp_path, ek, _HEADER + blob + encrypted) is None


def test_the_blobs_are_those_of_tpm2_makecredential_in_form(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    """The seed is random, so only sizes can agree; and the TPM opens theirs to the same secret."""
    tpm = make_tpm()
    public, name, ek = make_keys(tpm, tmp_path, None)
    secret = secrets.token_bytes(SECRET_LENGTH)
    (tmp_path / "plain").write_bytes(secret)
    tpm.tool(
        "tpm2_makecredential", "-T", "none", "-u", "ek.pub", "-s", "plain", "-n", name.hex(), "-o", "theirs",
        cwd=tmp_path,
    )  # fmt: skip
    theirs = (tmp_path / "theirs").read_bytes()
    assert activate(tpm, tmp_path, ek, theirs) == secret
    assert len(_HEADER + b"".join(make_credential(public, name, secret))) == len(theirs)


@pytest.mark.parametrize("length", [0, 33])
def test_a_secret_is_no_longer_than_the_digest(length: int) -> None:
    with pytest.raises(ValueError, match="no longer than the digest"):
        make_credential(P256_EK, SOME_NAME, bytes(length))


@pytest.mark.parametrize("name", [b"", SOME_NAME[:-1], SOME_NAME + b"x", b"\x40\x00\x00\x01"])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(EvidenceError, match="no Name of an attestation key"):
        make_credential(P256_EK, name, b"secret")


AES_128_CFB = bytes.fromhex("0006 0080 0043")


def storage(ek: PublicArea = P256_EK, **wrong: tuple[bytes, bytes]) -> PublicArea:
    data = ek.data
    for old, new in wrong.values():
        assert data.count(old) == 1
        data = data.replace(old, new)
    return parse_public_area(data)


def test_an_endorsement_key_is_accepted_and_others_are_not() -> None:
    check_credential_key(P256_EK)
    check_credential_key(storage(aes=(AES_128_CFB, bytes.fromhex("0006 0100 0043"))))
    signing = parse_public_area(public_area(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(EvidenceError, match="no storage key with AES"):
        check_credential_key(signing)
    with pytest.raises(EvidenceError, match="no storage key with AES"):
        check_credential_key(storage(camellia=(AES_128_CFB, bytes.fromhex("0026 0080 0043"))))
    with pytest.raises(EvidenceError, match="no storage key with AES"):
        check_credential_key(storage(ecb=(AES_128_CFB, bytes.fromhex("0006 0080 0044"))))
    with pytest.raises(EvidenceError, match="an endorsement key with sha1 is not accepted"):
        check_credential_key(storage(sha1=(bytes.fromhex("0023000b"), bytes.fromhex("00230004"))))


def test_weak_and_foreign_kinds_are_refused() -> None:
    for key, kind in [
        (rsa.generate_private_key(65537, 1024), "rsa-1024"),  # noqa: S505 - to be refused
        (ec.generate_private_key(ec.SECP521R1()), "ecc-p521"),
    ]:
        with pytest.raises(EvidenceError, match=f"an endorsement key of {kind} is not accepted"):
            check_credential_key(parse_public_area(public_area(key)))
