"""Existing private keys are brought into the TPM; their attributes keep saying so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from support.openssl_tpm import openssl_tpm
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    CredentialError,
    HandleOccupiedError,
    PemError,
    StateError,
    StorageError,
    UsageError,
)
from tpm_mtls.structures import Attribute, KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.keys import FileForm, PersistentForm, create_key, import_key, load_key
from tpm_mtls_keygen.software_key import read_software_key

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from support.tpm import SimulatedTpm

PKCS8 = PrivateFormat.PKCS8


def write(path: Path, key: PrivateKeyTypes, *, form: PrivateFormat = PKCS8, passphrase: bytes | None = None) -> Path:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, form, encryption))
    return path


def make(algorithm: KeyAlgorithm) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if algorithm.is_ecc:
        return ec.generate_private_key(ec.SECP384R1() if algorithm is KeyAlgorithm.ECC_P384 else ec.SECP256R1())
    return rsa.generate_private_key(65537, 3072 if algorithm is KeyAlgorithm.RSA_3072 else 2048)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
@pytest.mark.parametrize("form", [PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_imported_key_signs_and_openssl_uses_its_file(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: KeyAlgorithm, form: PrivateFormat
) -> None:
    private = make(algorithm)
    software = read_software_key(write(tmp_path / "soft.pem", private, form=form))
    assert software.algorithm is algorithm
    path = tmp_path / "device.key.pem"
    with open_tpm(tpm.tcti) as opened:
        key = import_key(opened, software, FileForm(path))
        build_csr(opened, key)

    assert key.public.spki == private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    shown = load_pem_public_key(openssl_tpm(tpm, "pkey", "-in", str(path), "-pubout").stdout)
    assert shown == private.public_key()
    request = openssl_tpm(tpm, "req", "-new", "-key", str(path), "-subj", "/CN=x").stdout
    (tmp_path / "csr.pem").write_bytes(request)
    tpm.tool("openssl", "req", "-verify", "-noout", "-in", str(tmp_path / "csr.pem"))


def test_its_attributes_tell_that_it_was_imported(tpm: SimulatedTpm, tmp_path: Path) -> None:
    software = read_software_key(write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256)))
    with open_tpm(tpm.tcti) as opened:
        imported = import_key(opened, software, PersistentForm())
        made = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())

    assert imported.public.attribute_words == ("userWithAuth", "noDA", "sign")
    assert not imported.public.was_born_inside
    assert made.public.was_born_inside
    seen = tpm.tool("tpm2_readpublic", "-c", "0x81000100").stdout
    assert "value: userwithauth|noda|sign" in seen
    assert f"name: {imported.public.name.hex()}" in seen


def test_an_imported_key_cannot_be_duplicated_out_again(tpm: SimulatedTpm, tmp_path: Path) -> None:
    software = read_software_key(write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256)))
    with open_tpm(tpm.tcti) as opened:
        import_key(opened, software, PersistentForm())
    tpm.tool("tpm2_startauthsession", "--policy-session", "-S", "s.ctx", cwd=tmp_path)
    tpm.tool("tpm2_policycommandcode", "-S", "s.ctx", "TPM2_CC_Duplicate", cwd=tmp_path)
    command = "tpm2_duplicate -C null -c 0x81000100 -G null -p session:s.ctx -r priv -s seed"
    assert tpm.tool(*command.split(), check=False, cwd=tmp_path).returncode != 0
    tpm.tool("tpm2_flushcontext", "s.ctx", cwd=tmp_path)


def test_an_imported_key_may_have_an_authorization_value(tpm: SimulatedTpm, tmp_path: Path) -> None:
    software = read_software_key(write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256)))
    with open_tpm(tpm.tcti) as opened:
        key = import_key(opened, software, FileForm(tmp_path / "k.pem"), authorization=Secret(b"right"))
        build_csr(opened, key)
        assert Attribute.NODA not in key.public.attributes
        opened.flush(key.loaded)
        build_csr(opened, load_key(opened, key.reference, authorization=Secret(b"right")))
        wrong = load_key(opened, key.reference, authorization=Secret(b"wrong"))
        with pytest.raises(AuthorizationError, match="cannot sign"):
            build_csr(opened, wrong)


def test_nothing_is_overwritten(tpm: SimulatedTpm, tmp_path: Path) -> None:
    source = write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256))
    software = read_software_key(source)
    with open_tpm(tpm.tcti) as opened:
        with pytest.raises(StateError, match="exists already and is not overwritten"):
            import_key(opened, software, FileForm(source))
        import_key(opened, software, PersistentForm(0x81000100))
        with pytest.raises(HandleOccupiedError):
            import_key(opened, software, PersistentForm(0x81000100))


def test_under_an_rsa_storage_root_key_it_works_too(tpm: SimulatedTpm, tmp_path: Path) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
    command = f"tpm2_createprimary -C o -G rsa2048:aes128cfb -a {attributes} -c p.ctx"
    tpm.tool(*command.split(), cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    software = read_software_key(write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256)))
    with open_tpm(tpm.tcti) as opened:
        build_csr(opened, import_key(opened, software, FileForm(tmp_path / "k.pem")))


def test_the_private_key_is_never_on_the_bus_in_the_clear(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = tmp_path / "capture.pcapng"
    monkeypatch.setenv("TCTI_PCAP_FILE", str(capture))
    private = make(KeyAlgorithm.ECC_P256)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    software = read_software_key(write(tmp_path / "soft.pem", private))
    with open_tpm(f"pcap:{tpm.tcti}") as opened:
        key = import_key(opened, software, PersistentForm())
    seen = capture.read_bytes()
    assert private.public_key().public_numbers().x.to_bytes(32, "big") in seen
    assert private.private_numbers().private_value.to_bytes(32, "big") not in seen
    assert repr(private.private_numbers().private_value) not in repr(software) + repr(key)


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    encrypted = write(tmp_path / "soft.pem", make(KeyAlgorithm.ECC_P256), passphrase=b"right")
    assert read_software_key(encrypted, passphrase=Secret(b"right")).algorithm is KeyAlgorithm.ECC_P256
    with pytest.raises(PemError, match=r"soft\.pem is damaged, or the passphrase is wrong"):
        read_software_key(encrypted, passphrase=Secret(b"wrong"))
    with pytest.raises(UsageError, match=r"soft\.pem is encrypted"):
        read_software_key(encrypted)
    plain = write(tmp_path / "plain.pem", make(KeyAlgorithm.ECC_P256))
    with pytest.raises(UsageError, match=r"plain\.pem is not encrypted"):
        read_software_key(plain, passphrase=Secret(b"right"))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (ec.generate_private_key(ec.SECP521R1()), "curve secp521r1"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 1024), "RSA with 1024 bits and exponent 65537"),  # noqa: S505 - to be refused
        (rsa.generate_private_key(3, 2048), "RSA with 2048 bits and exponent 3"),
        (dsa.generate_private_key(1024), "DSA"),  # noqa: S505 - to be refused
    ],
    ids=["p521", "ed25519", "rsa-1024", "exponent 3", "dsa"],
)
def test_a_kind_that_tls_keys_in_a_tpm_do_not_have_is_refused(tmp_path: Path, key: PrivateKeyTypes, what: str) -> None:
    with pytest.raises(CredentialError, match=f"holds a key that cannot be imported: .*{what}") as caught:
        read_software_key(write(tmp_path / "soft.pem", key))
    assert "ecc-p256, ecc-p384, rsa-2048, rsa-3072" in caught.value.hint


def test_a_curve_that_nobody_knows_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "soft.pem"
    tpm.tool("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "group:secp112r1", "-out", str(path))
    with pytest.raises(CredentialError, match="cannot be imported: an unknown algorithm"):
        read_software_key(path)


def test_what_is_no_software_key_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    with open_tpm(tpm.tcti) as opened:
        create_key(opened, KeyAlgorithm.ECC_P256, FileForm(path))
    with pytest.raises(CredentialError, match="is a key of a TPM already"):
        read_software_key(path)
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(PemError, match=r"device\.key\.pem is damaged"):
        read_software_key(path)
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(PemError, match="is cut off or damaged"):
        read_software_key(path)
    with pytest.raises(StorageError, match="no such file"):
        read_software_key(tmp_path / "absent")
