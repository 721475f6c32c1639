"""Every unusable key, certificate, TPM and provider has its own error; "[SSL] PEM lib" reaches nobody."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support.certificates import TestCa, now, write_software_key
from support.handshakes import handshake
from support.tpm_keys import SRK, make_key, make_srk, set_empty_auth
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    CertificateExpiredError,
    CertificateMismatchError,
    CertificateNotYetValidError,
    CredentialError,
    ForeignKeyError,
    HandleNotFoundError,
    OpensslError,
    PemError,
    ProviderMissingError,
    StorageError,
    TctiInvalidError,
    TpmLockoutError,
    TpmMemoryError,
    TpmUnavailableError,
    UsageError,
)
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from support.tpm_keys import TpmKey

HANDLE = 0x81000100


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def key(tpm: SimulatedTpm, tmp_path: Path) -> TpmKey:
    return make_key(tpm, tmp_path)


@pytest.fixture
def identity(ca: TestCa, key: TpmKey) -> Identity:
    return ca.identity(key.reference, key.public_key, "device")


def path_of(identity: Identity) -> Path:
    assert isinstance(identity.key, KeyFile)
    return identity.key.path


# --- the TPM ---


def test_no_tpm(identity: Identity, tpm: SimulatedTpm) -> None:
    client_context(identity, tcti=tpm.tcti)
    with pytest.raises(TpmUnavailableError, match=r"no TPM answers at swtpm:host=127\.0\.0\.1,port=1 ") as caught:
        client_context(identity, tcti="swtpm:host=127.0.0.1,port=1")
    assert "simulator start" in caught.value.hint
    with pytest.raises(TctiInvalidError, match="not a TCTI string: 'nonsense'"):
        client_context(identity, tcti="nonsense")
    with pytest.raises(TpmUnavailableError, match="there is no TPM at /dev/tpm-absent"):
        client_context(identity, tcti="device:/dev/tpm-absent")


def test_a_tpm_that_has_gone_and_come_back(identity: Identity, tpm: SimulatedTpm) -> None:
    """The process's connection to it is broken for good; the next context gets a new one."""
    client_context(identity, tcti=tpm.tcti)
    tpm.stop()
    with pytest.raises(TpmUnavailableError, match="no TPM answers"):
        client_context(identity, tcti=tpm.tcti)
    tpm.simulator.start()
    client_context(identity, tcti=tpm.tcti)


def test_a_key_file_of_another_tpm(identity: Identity, make_tpm: Callable[[], SimulatedTpm], tmp_path: Path) -> None:
    other = make_tpm()
    with pytest.raises(ForeignKeyError, match="its parent is not in this TPM") as caught:
        client_context(identity, tcti=other.tcti)
    assert caught.value.rc & 0xFF == 0x8B
    make_srk(other, tmp_path)
    with pytest.raises(ForeignKeyError, match="belongs to another TPM") as caught:
        client_context(identity, tcti=other.tcti)
    assert caught.value.rc == 0x1DF


def test_the_parent_was_removed(identity: Identity, tpm: SimulatedTpm) -> None:
    client_context(identity, tcti=tpm.tcti)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", SRK)
    with pytest.raises(ForeignKeyError, match="its parent is not in this TPM"):
        client_context(identity, tcti=tpm.tcti)


def test_object_slots_are_exhausted(identity: Identity, tpm: SimulatedTpm) -> None:
    held = [client_context(identity, tcti=tpm.tcti) for _ in range(2)]
    with pytest.raises(TpmMemoryError, match="object slots are exhausted") as caught:
        client_context(identity, tcti=tpm.tcti)
    assert caught.value.rc == 0x902
    held.pop()
    client_context(identity, tcti=tpm.tcti)


def test_nothing_at_the_handle(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(tpm, tmp_path, handle=HANDLE)
    good = ca.identity(key.reference, key.public_key, "device")
    client_context(good, tcti=tpm.tcti)
    empty = Identity(PersistentHandle(HANDLE + 1), good.certificate, good.trust)
    with pytest.raises(
        HandleNotFoundError, match="cannot load the key handle:0x81000101: the TPM has nothing"
    ) as caught:
        client_context(empty, tcti=tpm.tcti)
    assert caught.value.rc == 0x18B


@pytest.mark.parametrize("handle", [None, HANDLE])
def test_authorization_values(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, handle: int | None) -> None:
    server = server_context(ca.software_identity("localhost"))
    key = make_key(tpm, tmp_path, handle=handle, authorization="right")
    identity = ca.identity(key.reference, key.public_key, "device")
    right, wrong = Secret(b"right"), Secret(b"wrong")
    assert handshake(client_context(identity, tcti=tpm.tcti, authorization=right), server).client == "device"
    with pytest.raises(AuthorizationError, match="wrong authorization value") as caught:
        client_context(identity, tcti=tpm.tcti, authorization=wrong)
    assert caught.value.rc == 0x98E
    assert "wrong" not in repr(caught.value).replace("wrong authorization value", "")
    assert tpm.handles("transient") == []


def test_a_missing_authorization_value(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(tpm, tmp_path, authorization="right")
    identity = ca.identity(key.reference, key.public_key, "device")
    client_context(identity, tcti=tpm.tcti, authorization=Secret(b"right"))
    with pytest.raises(AuthorizationError, match="needs an authorization value") as caught:
        client_context(identity, tcti=tpm.tcti)
    assert "--auth" in caught.value.hint


def test_a_persistent_key_that_needs_an_authorization_value_is_not_tried_without(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    key = make_key(tpm, tmp_path, handle=HANDLE, authorization="right")
    identity = ca.identity(key.reference, key.public_key, "device")
    client = client_context(identity, tcti=tpm.tcti)
    error = client.diagnose()
    assert isinstance(error, AuthorizationError)
    assert "needs an authorization value" in str(error)


def test_a_key_file_that_wrongly_claims_an_authorization_value_works(identity: Identity, tpm: SimulatedTpm) -> None:
    """As tpm2_encodeobject writes it for every key."""
    set_empty_auth(path_of(identity), empty=False)
    client_context(identity, tcti=tpm.tcti)


def test_the_tpm_is_in_lockout(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(tpm, tmp_path, authorization="right")
    identity = ca.identity(key.reference, key.public_key, "device")
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=1000")
    client_context(identity, tcti=tpm.tcti, authorization=Secret(b"right"))
    with pytest.raises(AuthorizationError, match="wrong authorization value"):
        client_context(identity, tcti=tpm.tcti, authorization=Secret(b"wrong"))
    with pytest.raises(TpmLockoutError, match="dictionary-attack lockout") as caught:
        client_context(identity, tcti=tpm.tcti, authorization=Secret(b"right"))
    assert caught.value.rc == 0x921
    assert tpm.handles("transient") == []


# --- the provider ---


def test_the_provider_is_missing_or_broken(
    identity: Identity, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("OPENSSL_MODULES", str(folder))
    with pytest.raises(ProviderMissingError, match=r"there is no tpm2 provider in .*modules") as caught:
        client_context(identity, tcti=tpm.tcti)
    assert "./run setup" in caught.value.hint
    (folder / "tpm2.so").write_bytes(b"no library")
    with pytest.raises(ProviderMissingError, match="does not load"):
        client_context(identity, tcti=tpm.tcti)
    monkeypatch.delenv("OPENSSL_MODULES")
    client_context(identity, tcti=tpm.tcti)

    monkeypatch.setenv("OPENSSL_MODULES", str(folder))
    with pytest.raises(ProviderMissingError, match="does not load") as caught:
        client_context(identity, tcti="swtpm:host=127.0.0.1,port=9")
    assert "restart the program" in caught.value.hint  # it did load before, in this process


# --- the files ---


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: data[: len(data) // 2], "cut off or damaged"),
        (lambda data: data[:-20], "cut off or damaged"),
        (lambda _: b"", "no private key"),
        (lambda data: data + b"x" * 70_000, "larger than"),
        (lambda data: data.replace(b"TSS2 PRIVATE KEY", b"PRIVATE KEY"), "is damaged"),
        (lambda _: b"-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n", "is damaged"),
    ],
)
def test_a_damaged_key_file(
    damage: Callable[[bytes], bytes], match: str, identity: Identity, tpm: SimulatedTpm
) -> None:
    client_context(identity, tcti=tpm.tcti)
    path = path_of(identity)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PemError, match=match) as caught:
        client_context(identity, tcti=tpm.tcti)
    assert str(path) in str(caught.value)


def test_a_missing_key_file(identity: Identity, tpm: SimulatedTpm) -> None:
    path_of(identity).unlink()
    with pytest.raises(StorageError, match="no such file"):
        client_context(identity, tcti=tpm.tcti)


@pytest.mark.parametrize("length", [0, 100, -30])
def test_a_truncated_certificate(length: int, identity: Identity, tpm: SimulatedTpm) -> None:
    client_context(identity, tcti=tpm.tcti)
    identity.certificate.write_bytes(identity.certificate.read_bytes()[:length])
    with pytest.raises(PemError, match="holds no certificate in PEM form, or a damaged one"):
        client_context(identity, tcti=tpm.tcti)


def test_an_oversized_or_missing_certificate(identity: Identity, tpm: SimulatedTpm) -> None:
    identity.certificate.write_bytes(identity.certificate.read_bytes() + b"\n" * 70_000)
    with pytest.raises(PemError, match="larger than"):
        client_context(identity, tcti=tpm.tcti)
    identity.certificate.unlink()
    with pytest.raises(StorageError, match="no such file"):
        client_context(identity, tcti=tpm.tcti)


def test_an_encrypted_certificate_asks_for_nothing(identity: Identity, tpm: SimulatedTpm) -> None:
    begin = "-----BEGIN CERTIFICATE-----\n"
    encrypted = f"{begin}Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{'00' * 16}\n\n"
    identity.certificate.write_text(identity.certificate.read_text().replace(begin, encrypted))
    with pytest.raises(PemError, match="holds no certificate"):
        client_context(identity, tcti=tpm.tcti)


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_the_certificate_belongs_to_another_key(
    algorithm: str, identity: Identity, ca: TestCa, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    client_context(identity, tcti=tpm.tcti)
    other = make_key(tpm, tmp_path, algorithm)
    mixed = Identity(identity.key, ca.certify(other.public_key, "device"), identity.trust)
    with pytest.raises(CertificateMismatchError, match="does not belong to the key"):
        client_context(mixed, tcti=tpm.tcti)
    assert tpm.handles("transient") == []
    software = ca.software_identity("soft")
    with pytest.raises(CertificateMismatchError, match="does not belong to the key"):
        client_context(Identity(software.key, identity.certificate, identity.trust))


def test_validity_against_the_clock(ca: TestCa, key: TpmKey, tpm: SimulatedTpm) -> None:
    start, end = now() - dt.timedelta(days=2), now() - dt.timedelta(days=1)
    certificate = ca.certify(key.public_key, "device", not_before=start, not_after=end)
    identity = Identity(key.reference, certificate, ca.trust)
    for moment in (start, end):
        client_context(identity, tcti=tpm.tcti, clock=lambda moment=moment: moment)
    with pytest.raises(CertificateExpiredError, match=f"expired at {end:%Y-%m-%d %H:%M:%S} UTC"):
        client_context(identity, tcti=tpm.tcti)
    with pytest.raises(CertificateNotYetValidError, match="this machine's clock says 1970-01-01") as caught:
        client_context(identity, tcti=tpm.tcti, clock=lambda: dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    assert "set the clock" in caught.value.hint
    with pytest.raises(CertificateNotYetValidError, match="is not valid before"):
        server_context(identity, tcti=tpm.tcti, clock=lambda: start - dt.timedelta(seconds=1))


def test_an_encrypted_software_key(ca: TestCa, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "k.pem"
    write_software_key(path, key, b"right")
    identity = ca.identity(KeyFile(path), key.public_key(), "soft")
    client_context(identity, authorization=Secret(b"right"))
    with pytest.raises(UsageError, match="is encrypted"):
        client_context(identity)
    with pytest.raises(CredentialError, match="wrong passphrase"):
        client_context(identity, authorization=Secret(b"wrong"))


def test_a_damaged_software_key(ca: TestCa) -> None:
    identity = ca.software_identity("soft")
    path = path_of(identity)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    with pytest.raises(PemError, match="is damaged"):
        client_context(identity)


def test_a_key_that_is_too_weak(ca: TestCa) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the point of the test
    with pytest.raises(OpensslError, match=r"OpenSSL refuses the certificate or its key: .*too small") as caught:
        client_context(ca.software_identity("weak", weak))
    assert "ecc-p256" in caught.value.hint


def test_the_environment_stays_as_it_was(
    identity: Identity, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own TPM2OPENSSL_TCTI is neither used nor lost."""
    monkeypatch.setenv("TPM2OPENSSL_TCTI", "swtpm:host=127.0.0.1,port=1")
    client_context(identity, tcti=tpm.tcti)
    assert os.environ["TPM2OPENSSL_TCTI"] == "swtpm:host=127.0.0.1,port=1"
    monkeypatch.delenv("TPM2OPENSSL_TCTI")
    server_context(identity, tcti=tpm.tcti)
    assert "TPM2OPENSSL_TCTI" not in os.environ
