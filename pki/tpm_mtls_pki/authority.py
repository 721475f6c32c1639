"""The CA's folder: who the CA is, its two certificates and keys, its store and its CRLs.

====================  ====  =============================================================
ca.json               0644  settings (`Settings`)
root.pem              0644  the trust anchor: what devices and servers are given
root.key.pem          0600  its key, encrypted; used at init and to sign the root's CRL only
issuing.pem           0644  the CA that signs leaves
issuing.key.pem       0600  its key, encrypted
chain.pem             0644  issuing, then root
crl.pem               0644  the issuing CA's CRL
root.crl.pem          0644  the root's CRL
store.sqlite          0600  certificates, tokens, audit log (unless the settings name another database)
====================  ====  =============================================================
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.certificates import certificates_pem, check_matches, load_certificates, spki
from tpm_mtls.errors import StateError, UsageError
from tpm_mtls.files import PRIVATE_FILE, make_file, make_folder, read_capped, storage_errors, sync_folder, write_atomic
from tpm_mtls_pki import audit, profiles
from tpm_mtls_pki.ca_keys import encrypt_key, load_key
from tpm_mtls_pki.crl import ISSUING_LIFETIME, ROOT_LIFETIME, issue_crl
from tpm_mtls_pki.database import Database, database_url, sqlite_url
from tpm_mtls_pki.profiles import Issuer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from cryptography import x509
    from sqlalchemy.engine import URL

    from tpm_mtls.authorization import Secret

DEFAULT_FOLDER: Final = Path("/var/lib/tpm-mtls-pki")
SETTINGS: Final = "ca.json"
ROOT: Final = "root.pem"
ROOT_KEY: Final = "root.key.pem"
ISSUING: Final = "issuing.pem"
ISSUING_KEY: Final = "issuing.key.pem"
CHAIN: Final = "chain.pem"
CRL: Final = "crl.pem"
ROOT_CRL: Final = "root.crl.pem"
STORE: Final = "store.sqlite"
FORMAT: Final = 1

_SETTINGS_LIMIT = 16 * 1024  # bytes
_NAME_LIMIT = 50  # characters; " Issuing" is added, and a common name takes 64


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``ca.json``.

    Attributes:
        format: version of this structure.
        name: the CA's name.
        crl_url: where its CRLs are to be found, without their last part; none if nowhere.
        database: SQLAlchemy URL of the store; none for ``store.sqlite`` in the folder.
    """

    format: int = FORMAT
    name: str
    crl_url: str | None = None
    database: str | None = None


@dataclass(frozen=True)
class Authority:
    """An opened CA; its keys stay encrypted until unlocked.

    Attributes:
        folder: where it lives.
        settings: its settings.
        root: the root certificate.
        issuing: the issuing CA's certificate.
        database: its store.
    """

    folder: Path
    settings: Settings
    root: x509.Certificate
    issuing: x509.Certificate
    database: Database

    def unlock(self, passphrase: Secret) -> Issuer:
        """The issuing CA, ready to sign; the key is in memory only.

        Raises:
            CredentialError: the passphrase is wrong, or the key is not the certificate's.
            StorageError: the key cannot be read.
        """
        return self._unlock(ISSUING_KEY, self.issuing, passphrase, profiles.crl_urls(self.settings.crl_url)[1])

    def unlock_root(self, passphrase: Secret) -> Issuer:
        """The root, ready to sign its CRL. Errors as `unlock`."""
        return self._unlock(ROOT_KEY, self.root, passphrase, profiles.crl_urls(self.settings.crl_url)[0])

    def _unlock(self, file: str, certificate: x509.Certificate, passphrase: Secret, crl_url: str | None) -> Issuer:
        key = load_key(self.folder / file, passphrase)
        check_matches(certificate, spki(key.public_key()))
        return Issuer(certificate, key, crl_url)


@contextmanager
def open_authority(folder: Path) -> Iterator[Authority]:
    """The CA in ``folder``, for the time of the block.

    Raises:
        StateError: there is none, or its settings or its store are damaged or of another version.
        PemError: a certificate is damaged.
        StorageError: something cannot be read.
    """
    settings = _load_settings(folder)
    root, issuing = (load_certificates(folder / name)[0] for name in (ROOT, ISSUING))
    database = Database(_url(folder, settings.database))
    try:
        database.check(_digest(issuing))
        yield Authority(folder, settings, root, issuing, database)
    finally:
        database.close()


def create_authority(
    folder: Path, settings: Settings, *, passphrase: Secret, root_passphrase: Secret, now: datetime
) -> None:
    """Makes a CA in ``folder``: all of it or nothing.

    It is built in a hidden folder beside and renamed at the end. A run that was killed leaves that hidden folder,
    ``.NAME.….unfinished``, which nothing uses.

    Raises:
        UsageError: the name, the CRLs' URL or the database's is unusable.
        StateError: there is a CA already, or something else.
        StorageError: it cannot be written.
    """
    _check_settings(settings)
    folder = folder.absolute()
    with storage_errors(folder, "read"):
        if folder.exists() and any(folder.iterdir()):
            what = "a CA" if (folder / SETTINGS).exists() else "something"
            raise StateError(f"there is {what} in {folder} already", hint="name another folder: --ca-dir")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
    make_folder(unfinished, mode=0o700, like=folder if folder.exists() else None)
    try:
        _write_authority(unfinished, settings, passphrase, root_passphrase, now)
        with storage_errors(folder, "make"):
            unfinished.rename(folder)  # over an empty folder, or to a new name; anything else is refused
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_authority(
    folder: Path, settings: Settings, passphrase: Secret, root_passphrase: Secret, now: datetime
) -> None:
    root_url, issuing_url = profiles.crl_urls(settings.crl_url)
    root_key, issuing_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    root = Issuer(profiles.build_root(settings.name, root_key, now=now), root_key, root_url)
    certificate = profiles.build_issuing(settings.name, issuing_key.public_key(), root, now=now)
    issuing = Issuer(certificate, issuing_key, issuing_url)
    write_atomic(folder / ROOT_KEY, encrypt_key(root_key, root_passphrase), mode=PRIVATE_FILE)
    write_atomic(folder / ISSUING_KEY, encrypt_key(issuing_key, passphrase), mode=PRIVATE_FILE)
    write_atomic(folder / ROOT, certificates_pem([root.certificate]))
    write_atomic(folder / ISSUING, certificates_pem([certificate]))
    write_atomic(folder / CHAIN, certificates_pem([certificate, root.certificate]))
    write_atomic(folder / SETTINGS, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
    if settings.database is None:
        make_file(folder / STORE)  # SQLite's would be as the umask says; what it makes beside is as this one is
    database = Database(_url(folder, settings.database))
    try:
        database.create(_digest(certificate))
        with database.writing() as connection:
            audit.append(connection, "ca-created", settings.name, {"root": _digest(root.certificate)}, now=now)
            root_crl = issue_crl(connection, "root", root, lifetime=ROOT_LIFETIME, now=now)
            crl = issue_crl(connection, "issuing", issuing, lifetime=ISSUING_LIFETIME, now=now)
    finally:
        database.close()
    write_atomic(folder / ROOT_CRL, root_crl.public_bytes(Encoding.PEM))
    write_atomic(folder / CRL, crl.public_bytes(Encoding.PEM))


def _check_settings(settings: Settings) -> None:
    if not 1 <= len(settings.name) <= _NAME_LIMIT or not settings.name.isprintable():
        raise UsageError("that cannot name a CA", hint=f"one line of 1 to {_NAME_LIMIT} characters")
    url = settings.crl_url
    if url is not None and (not url.startswith(("http://", "https://")) or not url.isascii() or not url.isprintable()):
        raise UsageError(f"not a URL for CRLs: {url[:80]!r}", hint="for example http://pki.example/crl")
    if settings.database is not None:
        database_url(settings.database)


def _load_settings(folder: Path) -> Settings:
    path = folder / SETTINGS
    if not path.exists():
        raise StateError(f"there is no CA in {folder}", hint="make one: tpm-mtls pki init; or name another: --ca-dir")
    try:
        settings = msgspec.json.decode(read_capped(path, limit=_SETTINGS_LIMIT), type=Settings)
    except msgspec.DecodeError as error:
        raise StateError(f"{path} is damaged: {str(error).lower()}", hint="restore it from a backup") from error
    if settings.format != FORMAT:
        raise StateError(f"{path} has format {settings.format}, expected {FORMAT}", hint="use the tpm-mtls it is from")
    return settings


def _url(folder: Path, text: str | None) -> URL:
    return sqlite_url(folder / STORE) if text is None else database_url(text)


def _digest(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
