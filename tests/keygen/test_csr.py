"""Certificate requests: openssl verifies them, for every algorithm; and what the signer refuses."""

from __future__ import annotations

import copy
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tpm_mtls.errors import CredentialError, KeyGoneError, UsageError
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.csr import build_csr, csr_pem
from tpm_mtls_keygen.keys import FileForm, PersistentForm, create_key, load_key
from tpm_mtls_keygen.signer import EccSigner, RsaSigner, signer_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.tpm import Tpm


@pytest.fixture
def opened(tpm: SimulatedTpm) -> Iterator[Tpm]:
    with open_tpm(tpm.tcti) as opened:
        yield opened


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_openssl_verifies_the_request(opened: Tpm, tmp_path: Path, algorithm: KeyAlgorithm) -> None:
    key = create_key(opened, algorithm, FileForm(tmp_path / "device.key.pem"))
    request = build_csr(opened, key, common_name="sensor-17")

    done = subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-subject", "-text"],
        input=csr_pem(request),
        capture_output=True,
        check=True,
    )
    # OpenSSL 3.0 and 3.5 differ in where that goes, and in the spaces
    assert b"verify OK" in done.stdout + done.stderr
    assert b"subject=CN=sensor-17" in done.stdout.replace(b" ", b"")
    wanted = {KeyAlgorithm.ECC_P256: "ecdsa-with-SHA256", KeyAlgorithm.ECC_P384: "ecdsa-with-SHA384"}
    assert wanted.get(algorithm, "sha256WithRSAEncryption").encode() in done.stdout
    parsed = x509.load_der_x509_csr(request)
    assert parsed.is_signature_valid
    assert parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == key.public.spki
    assert list(parsed.extensions) == []


def test_a_request_with_another_key_in_it_does_not_verify(opened: Tpm) -> None:
    one, other = (create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm()) for _ in range(2))
    assert one.public.spki is not None
    assert other.public.spki is not None
    forged = build_csr(opened, one).replace(one.public.spki, other.public.spki)
    assert not x509.load_der_x509_csr(forged).is_signature_valid


def test_without_a_common_name_the_subject_is_empty(opened: Tpm) -> None:
    key = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
    assert x509.load_der_x509_csr(build_csr(opened, key)).subject == x509.Name([])


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", "bell\a"])
def test_an_unusable_common_name_is_refused(opened: Tpm, name: str) -> None:
    key = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
    with pytest.raises(UsageError, match="a common name has 1 to 64 printable characters"):
        build_csr(opened, key, common_name=name)
    build_csr(opened, key, common_name="x" * 64)


def test_a_key_that_the_restarted_tpm_lost_is_gone(tpm: SimulatedTpm, opened: Tpm, tmp_path: Path) -> None:
    key = create_key(opened, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "device.key.pem"))
    tpm.restart()
    with pytest.raises(KeyGoneError, match="cannot sign: the key that was loaded is no longer in the TPM"):
        build_csr(opened, key)
    build_csr(opened, load_key(opened, key.reference))
    opened.flush(key.loaded)


def test_an_algorithm_that_no_certificate_has_is_refused(tpm: SimulatedTpm, opened: Tpm, tmp_path: Path) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc521", "-a", attributes, "-c", "p.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000100", cwd=tmp_path)
    tpm.flush()
    key = load_key(opened, PersistentHandle(0x81000100))
    with pytest.raises(CredentialError, match="no certificate can be made for a key with the algorithm ecc-p521"):
        build_csr(opened, key)


def test_the_signer_signs_and_gives_out_nothing(opened: Tpm) -> None:
    ecc = signer_for(opened, create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm()).loaded)
    assert isinstance(ecc, EccSigner)
    assert (ecc.curve.name, ecc.key_size) == ("secp256r1", 256)
    ecc.public_key().verify(ecc.sign(b"hello", ec.ECDSA(hashes.SHA256())), b"hello", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(TypeError, match="this key signs with sha256 only"):
        ecc.sign(b"hello", ec.ECDSA(hashes.SHA512()))
    with pytest.raises(NotImplementedError, match="only signs"):
        ecc.exchange(ec.ECDH(), ecc.public_key())

    rsa = signer_for(opened, create_key(opened, KeyAlgorithm.RSA_2048, PersistentForm()).loaded)
    assert isinstance(rsa, RsaSigner)
    assert rsa.key_size == 2048
    signature = rsa.sign(b"hello", padding.PKCS1v15(), hashes.SHA256())
    rsa.public_key().verify(signature, b"hello", padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(TypeError, match=r"PKCS #1 v1\.5 only"):
        rsa.sign(b"hello", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    with pytest.raises(NotImplementedError, match="only signs"):
        rsa.decrypt(b"x", padding.PKCS1v15())

    for signer in (ecc, rsa):
        assert copy.copy(signer) is signer
        assert copy.deepcopy(signer) is signer
        with pytest.raises(NotImplementedError, match="never leaves the TPM"):
            signer.private_numbers()
        with pytest.raises(NotImplementedError, match="never leaves the TPM"):
            signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
