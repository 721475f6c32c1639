"""The CA's folder: complete or absent, private where it must be, and what openssl says about it."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from support.authority import CRL_URL, NOW, PASSPHRASE, make_ca, new_key
from tpm_mtls.authorization import Secret
from tpm_mtls.certificates import spki
from tpm_mtls.errors import (
    CertificateMismatchError,
    CredentialError,
    PemError,
    StateError,
    StorageError,
    UsageError,
)
from tpm_mtls.files import write_atomic
from tpm_mtls_pki.authority import Settings, create_authority, open_authority
from tpm_mtls_pki.ca_keys import encrypt_key, load_key

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_pki.authority import Authority


def openssl(*arguments: str | Path, check: bool = True) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


def test_openssl_accepts_the_issuing_ca(ca_dir: Path) -> None:
    chain = ["-x509_strict", "-crl_check", "-CAfile", ca_dir / "root.pem", "-CRLfile", ca_dir / "root.crl.pem"]
    assert ": OK" in openssl("verify", *chain, ca_dir / "issuing.pem")
    assert ": OK" in openssl("verify", "-x509_strict", "-check_ss_sig", *chain[2:4], ca_dir / "root.pem")


def test_root_and_issuing_are_what_they_should_be(authority: Authority) -> None:
    for certificate, curve, path_length, years in (
        (authority.root, ec.SECP384R1, 1, 20),
        (authority.issuing, ec.SECP256R1, 0, 10),
    ):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, curve)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, path_length)
        assert (certificate.not_valid_after_utc - NOW).days == years * 365
    points = authority.issuing.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (name,) = points[0].full_name or []
    assert name.value == f"{CRL_URL}/root.crl"


def test_private_files_are_private(ca_dir: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in ca_dir.iterdir()}
    assert {name for name, mode in modes.items() if mode != 0o644} == {
        "root.key.pem",
        "issuing.key.pem",
        "store.sqlite",
    }
    assert {modes[name] for name in ("root.key.pem", "issuing.key.pem", "store.sqlite")} == {0o600}
    assert stat.S_IMODE(ca_dir.stat().st_mode) == 0o700


def test_keys_are_encrypted_as_openssl_understands(ca_dir: Path) -> None:
    key = ca_dir / "issuing.key.pem"
    assert "BEGIN ENCRYPTED PRIVATE KEY" in key.read_text()
    assert "scrypt" in openssl("asn1parse", "-in", key)
    pem = openssl("pkey", "-in", key, "-passin", "pass:correct horse", "-pubout")
    issuing = openssl("x509", "-in", ca_dir / "issuing.pem", "-noout", "-pubkey")
    assert pem == issuing
    # in one case of 256 a wrong key leaves what looks like padding, and openssl says more than "maybe wrong password"
    assert "Could not read key" in openssl("pkey", "-in", key, "-passin", "pass:wrong", check=False)


def test_the_right_passphrase_unlocks(authority: Authority) -> None:
    assert spki(authority.unlock(PASSPHRASE).key.public_key()) == spki(authority.issuing.public_key())
    assert spki(authority.unlock_root(PASSPHRASE).key.public_key()) == spki(authority.root.public_key())
    for unlock in (authority.unlock, authority.unlock_root):
        with pytest.raises(CredentialError, match="the passphrase is wrong"):
            unlock(Secret(b"wrong"))


def test_the_root_may_have_its_own_passphrase(tmp_path: Path) -> None:
    settings = Settings(name="Example")
    create_authority(tmp_path / "ca", settings, passphrase=PASSPHRASE, root_passphrase=Secret(b"safe"), now=NOW)
    with open_authority(tmp_path / "ca") as authority:
        assert authority.unlock(PASSPHRASE)
        assert authority.unlock_root(Secret(b"safe"))
        with pytest.raises(CredentialError, match="the passphrase is wrong"):
            authority.unlock_root(PASSPHRASE)


def test_a_key_that_is_not_the_certificates_is_refused(authority: Authority) -> None:
    write_atomic(authority.folder / "issuing.key.pem", encrypt_key(new_key(), PASSPHRASE), mode=0o600)
    with pytest.raises(CertificateMismatchError):
        authority.unlock(PASSPHRASE)


def test_a_key_that_others_can_read_is_refused(authority: Authority) -> None:
    (authority.folder / "issuing.key.pem").chmod(0o640)
    with pytest.raises(StorageError, match="can be read by other users"):
        authority.unlock(PASSPHRASE)


def test_other_key_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    write_atomic(file, new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    with pytest.raises(PemError, match="holds no encrypted private key"):
        load_key(file, PASSPHRASE)
    other = rsa.generate_private_key(65537, 2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.value))
    write_atomic(file, pem, mode=0o600)
    with pytest.raises(PemError, match="another kind of key"):
        load_key(file, PASSPHRASE)


def test_an_existing_folder_is_left_alone(ca_dir: Path, tmp_path: Path) -> None:
    before = (ca_dir / "root.pem").read_bytes()
    with pytest.raises(StateError, match=r"there is a CA in .* already"):
        make_ca(ca_dir)
    assert (ca_dir / "root.pem").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    make_ca(other)  # an empty one will do
    other = tmp_path / "full"
    other.mkdir()
    (other / "x").touch()
    with pytest.raises(StateError, match=r"there is something in .* already"):
        make_ca(other)
    assert [file.name for file in other.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "cannot name a CA"),
        ({"name": "x" * 51}, "cannot name a CA"),
        ({"name": "a\nb"}, "cannot name a CA"),
        ({"crl_url": "ldap://x"}, "not a URL for CRLs"),
        ({"crl_url": "http://ü.example"}, "not a URL for CRLs"),
        ({"database": "nonsense"}, "not a database URL"),
        ({"database": "nosuch://h/d"}, "cannot use the database"),
    ],
)
def test_unusable_settings_make_nothing(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_ca(tmp_path / "ca", **settings)
    assert list(tmp_path.iterdir()) == []


def test_another_database_holds_one_ca(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    make_ca(tmp_path / "ca", database=url)
    with open_authority(tmp_path / "ca") as authority:
        assert not (authority.folder / "store.sqlite").exists()
    with pytest.raises(StateError, match="holds a CA's store already"):
        make_ca(tmp_path / "other", database=url)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ca", "store.db"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot"):
        make_ca(tmp_path / "file" / "ca")


def test_what_is_no_ca_or_damaged_is_refused(ca_dir: Path, tmp_path: Path) -> None:
    def opening() -> None:
        with open_authority(ca_dir):
            pass

    with pytest.raises(StateError, match="there is no CA in"), open_authority(tmp_path / "none"):
        pass
    settings = ca_dir / "ca.json"
    good = settings.read_text()
    settings.write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(StateError, match="has format 2, expected 1"):
        opening()
    settings.write_text(good[:-5])
    with pytest.raises(StateError, match=r"ca\.json is damaged"):
        opening()
    settings.write_text(good)
    (ca_dir / "store.sqlite").unlink()
    with pytest.raises(StateError, match="holds no CA's store"):
        opening()


def test_an_init_that_is_killed_leaves_no_half_ca(tmp_path: Path) -> None:
    """At several instants: there is a whole CA that opens, or none, and the next init works."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    folder = tmp_path / "deep" / "ca"
    command = [*(sys.executable, "-m", "tpm_mtls", "pki", "init"), *("--ca-dir", str(folder), "--name", "Example")]
    command += ["--passphrase", f"file:{passphrase}"]
    for files in (1, 3, 6, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None and _unfinished(folder) < files:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if folder.exists():
            break
        with pytest.raises(StateError, match="there is no CA"), open_authority(folder):
            pass
    else:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open_authority(folder) as authority:
        assert authority.unlock(PASSPHRASE)


def _unfinished(folder: Path) -> int:
    newest = max(folder.parent.glob(".ca.*.unfinished"), key=lambda each: each.stat().st_mtime_ns, default=None)
    return sum(1 for _ in newest.iterdir()) if newest else 0
