"""Endorsement keys: the TCG's templates, from their parts and as a simulated TPM makes them."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.attestation import number, public_area, sized
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures import (
    EkTemplate,
    PublicArea,
    check_ek_public,
    ek_hash,
    ek_public,
    ek_public_from_certificate,
    ek_template,
    find_ek_template,
    parse_public_area,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from support.tpm import SimulatedTpm

POLICY_SECRET, POLICY_OR, POLICY_AUTHORIZE_NV = 0x0151, 0x0171, 0x0192  # TPM_CC: part 2, 6.5.2
ENDORSEMENT = 0x4000000B


def key_for(template: EkTemplate) -> bytes:
    if template.algorithm == "rsa-2048":
        return spki(rsa.generate_private_key(65537, 2048).public_key())
    curve = ec.SECP256R1() if template.algorithm == "ecc-p256" else ec.SECP384R1()
    return spki(ec.generate_private_key(curve).public_key())


def spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def policy_a(hash_name: str) -> bytes:
    """PolicySecret(TPM_RH_ENDORSEMENT), without policyRef: part 3, 23.4 and 23.2.3."""

    def digest(data: bytes) -> bytes:
        return hashlib.new(hash_name, data).digest()

    empty = bytes(hashlib.new(hash_name).digest_size)
    return digest(digest(empty + number(POLICY_SECRET, 4) + number(ENDORSEMENT, 4)))


def policy_b(hash_name: str, algorithm: int, index: int) -> bytes:
    """PolicyOR(PolicyA, PolicyAuthorizeNV of the index): EK Credential Profile 2.5, B.6."""

    def digest(data: bytes) -> bytes:
        return hashlib.new(hash_name, data).digest()

    size = hashlib.new(hash_name).digest_size
    attributes = 0x220F1008  # written, POLICYWRITE, NO_DA and who may read: the profile, B.6.3
    area = number(index, 4) + number(algorithm) + number(attributes, 4) + sized(policy_a(hash_name)) + number(size + 2)
    name = number(algorithm) + digest(area)
    policy_c = digest(bytes(size) + number(POLICY_AUTHORIZE_NV, 4) + name)
    return digest(bytes(size) + number(POLICY_OR, 4) + policy_a(hash_name) + policy_c)


def test_the_policies_are_computed_from_their_parts() -> None:
    low, high = (parse(template).policy for template in (EkTemplate.ECC_P256, EkTemplate.HIGH_ECC_P256))
    assert low == policy_a("sha256")
    assert high == policy_b("sha256", 0x000B, 0x01C07F01)
    assert parse(EkTemplate.HIGH_ECC_P384).policy == policy_b("sha384", 0x000C, 0x01C07F02)


def parse(template: EkTemplate) -> PublicArea:
    return ek_public(template, key_for(template))


@pytest.mark.parametrize("template", EkTemplate)
def test_a_key_of_each_template_is_recognized(template: EkTemplate) -> None:
    key = key_for(template)
    public = ek_public(template, key)

    assert public.spki == key
    assert public.algorithm == template.algorithm
    assert public.is_storage_key
    assert public.was_born_inside
    assert find_ek_template(public) is template
    check_ek_public(public, key)


@pytest.mark.parametrize("template", EkTemplate)
def test_a_key_of_another_kind_is_not_the_templates(template: EkTemplate) -> None:
    other = EkTemplate.HIGH_ECC_P384 if template.algorithm != "ecc-p384" else EkTemplate.RSA_2048
    with pytest.raises(EvidenceError, match=f"not {template.algorithm}, which {template.value} makes"):
        ek_public(template, key_for(other))


@pytest.mark.parametrize(
    ("template", "certificate", "nonce", "own_template"),
    [
        (EkTemplate.RSA_2048, 0x01C00002, 0x01C00003, 0x01C00004),
        (EkTemplate.ECC_P256, 0x01C0000A, 0x01C0000B, 0x01C0000C),
        (EkTemplate.HIGH_RSA_2048, 0x01C00012, None, 0x01C00013),
        (EkTemplate.HIGH_ECC_P256, 0x01C00014, None, 0x01C00015),
        (EkTemplate.HIGH_ECC_P384, 0x01C00016, None, 0x01C00017),
    ],
)
def test_the_indices_are_the_profiles(
    template: EkTemplate, certificate: int, nonce: int | None, own_template: int
) -> None:
    assert template.certificate_index == certificate
    assert template.nonce_index == nonce
    assert template.template_index == own_template


def test_a_tpm_makes_the_certified_keys_from_our_templates(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    """The keys at the handles are those of the certificates, and CreatePrimary makes them again."""
    tpm = make_tpm(ek_certificates=True)
    for template, handle in ((EkTemplate.RSA_2048, "0x81010001"), (EkTemplate.HIGH_ECC_P384, "0x81010016")):
        tpm.tool("tpm2_readpublic", "-c", handle, "-o", "ek.pub", cwd=tmp_path)
        there = parse_public_area((tmp_path / "ek.pub").read_bytes()[2:])
        tpm.tool("tpm2_nvread", f"{template.certificate_index:#x}", "-o", "ek.der", cwd=tmp_path)
        certificate = x509.load_der_x509_certificate((tmp_path / "ek.der").read_bytes())

        assert ek_public_from_certificate(certificate) == there
        assert ek_public_from_certificate(certificate, template).name == there.name
        assert find_ek_template(there) is template
        check_ek_public(there, certificate_spki(certificate))
        assert created(tpm, template) == there.data


def created(tpm: SimulatedTpm, template: EkTemplate) -> bytes:
    from tpm2_pytss.constants import ESYS_TR
    from tpm2_pytss.ESAPI import ESAPI
    from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMT_PUBLIC

    public, _ = TPMT_PUBLIC.unmarshal(ek_template(template))
    with ESAPI(tpm.tcti) as esapi:
        handle, made, *_ = esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), TPM2B_PUBLIC(publicArea=public), ESYS_TR.ENDORSEMENT
        )
        esapi.flush_context(handle)
        return bytes(made.publicArea.marshal())


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256, EkTemplate.HIGH_RSA_2048, EkTemplate.HIGH_ECC_P256])
def test_a_tpm_makes_keys_of_the_other_templates_too(tpm: SimulatedTpm, template: EkTemplate) -> None:
    public = parse_public_area(created(tpm, template))
    assert find_ek_template(public) is template


def test_tpm2_createek_makes_the_same_p256_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_createek", "-G", "ecc", "-c", "ek", "-u", "ek.pub", cwd=tmp_path)
    tpm.flush()
    assert (tmp_path / "ek.pub").read_bytes()[2:] == created(tpm, EkTemplate.ECC_P256)


def test_a_decoy_is_refused() -> None:
    key, other = key_for(EkTemplate.ECC_P256), key_for(EkTemplate.ECC_P256)
    with pytest.raises(EvidenceError, match="another than its certificate's"):
        check_ek_public(ek_public(EkTemplate.ECC_P256, other), key)
    software = ec.generate_private_key(ec.SECP256R1())
    signing = parse_public_area(public_area(software))
    with pytest.raises(EvidenceError, match="that is no endorsement key: ecc-p256"):
        check_ek_public(signing, spki(software.public_key()))


def test_a_storage_key_that_could_be_duplicated_is_no_endorsement_key() -> None:
    key = key_for(EkTemplate.ECC_P256)
    good = ek_public(EkTemplate.ECC_P256, key)
    attributes = number(int(good.attributes), 4)
    loose = parse_public_area(good.data.replace(attributes, number(int(good.attributes) & ~0x02, 4), 1))
    with pytest.raises(EvidenceError, match="that is no endorsement key"):
        check_ek_public(loose, key)
    assert find_ek_template(loose) is None


def test_an_endorsement_key_without_usable_cipher_is_refused() -> None:
    key = key_for(EkTemplate.ECC_P256)
    good = ek_public(EkTemplate.ECC_P256, key)
    camellia = parse_public_area(good.data.replace(bytes.fromhex("000600800043"), bytes.fromhex("002600800043"), 1))
    with pytest.raises(EvidenceError, match="no storage key with AES"):
        check_ek_public(camellia, key)


def test_a_key_file_of_no_template_has_none() -> None:
    assert find_ek_template(parse_public_area(public_area(ec.generate_private_key(ec.SECP521R1())))) is None
    sealed = parse_public_area(bytes.fromhex("0008000b00000012 0000 0010") + sized(b"\x01" * 32))
    assert find_ek_template(sealed) is None


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 3072).public_key(),
        rsa.generate_private_key(3, 2048).public_key(),
        ec.generate_private_key(ec.SECP521R1()).public_key(),
    ],
    ids=["rsa-3072", "exponent-3", "p521"],
)
def test_a_certificate_of_another_kind_of_key_is_refused(key: CertificatePublicKeyTypes) -> None:
    with pytest.raises(EvidenceError, match="no known TCG template makes"):
        ek_public_from_certificate(certificate_of(key))


def test_a_certificate_of_a_foreign_key_is_refused() -> None:
    with pytest.raises(EvidenceError, match="neither RSA nor ECC"):
        ek_public_from_certificate(certificate_of(ed25519.Ed25519PrivateKey.generate().public_key()))
    with pytest.raises(EvidenceError, match="cannot be read"):
        ek_public(EkTemplate.RSA_2048, b"no key")


def certificate_of(key: CertificatePublicKeyTypes) -> x509.Certificate:
    from datetime import UTC, datetime

    from cryptography.hazmat.primitives import hashes

    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).public_key(key)
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


def test_the_ek_hash_is_what_openssl_and_sha256sum_give(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = tmp_path / "ek.pem"
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", pem, "-outform", "DER"], capture_output=True, check=True
    ).stdout
    printed = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True).stdout.split()[0].decode()
    assert ek_hash(spki(key)) == printed
