"""``tpm-mtls pki revoke`` and ``pki crl``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_pki.cli_common import ca_dir_option, passphrase_option

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tpm_mtls.authorization import Secret
    from tpm_mtls_pki.authority import Authority
    from tpm_mtls_pki.crl import StoredCrl
    from tpm_mtls_pki.records import Record

_REASONS = (
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)


@click.command(epilog="\b\nExample: tpm-mtls pki revoke --device sensor-17.example --reason keyCompromise")
@ca_dir_option
@click.option("--serial", help="Serial number, hexadecimal.")
@click.option("--device", help="All valid certificates of this device.")
@click.option(
    "--reason", type=click.Choice(_REASONS), default="unspecified", show_default=True, help="RFC 5280, 5.3.1."
)
@passphrase_option("the issuing CA's passphrase, to sign the new CRL at once,", required=False)
@json_option
def revoke(
    ca_dir: Path, *, serial: str | None, device: str | None, reason: str, passphrase: str | None, as_json: bool
) -> None:
    """Revoke a certificate, or all of a device, for good.

    With --passphrase the new CRL is signed at once. Without, a running `pki serve` signs it within seconds, else
    `pki crl` does.
    """
    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki import records  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    if bool(serial) == bool(device):
        raise UsageError("what is to be revoked?", hint="give either --serial or --device")
    now = utc_now()
    secret = read_secret(passphrase, what="passphrase") if passphrase else None
    with open_authority(ca_dir) as authority:
        with authority.database.writing() as connection:
            found = find_records(connection, serial=serial, device=device)
            chosen = found if serial else [record for record in found if record.state(now) == "valid"]
            if not chosen:
                raise StateError(f"{device} has no valid certificate", hint="see: tpm-mtls pki list")
            for record in chosen:
                records.revoke(connection, record, reason=reason, now=now)
        if secret:
            sign_crl(authority, secret)
    serials = [record.serial for record in chosen]
    answer({"revoked": serials, "reason": reason, "crl_signed": bool(secret)}, "\n".join(serials), as_json=as_json)


@click.command(epilog="\b\nExample: tpm-mtls pki crl --ca-dir ./ca --passphrase prompt --out issuing.crl --der")
@ca_dir_option
@click.option("--root", is_flag=True, help="The root's CRL, which lists issuing CAs.")
@click.option("--der", is_flag=True, help="DER instead of PEM.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="Write it to a file.")
@passphrase_option("the passphrase, to sign a new one first,", required=False)
@json_option
def crl(ca_dir: Path, *, root: bool, der: bool, out: Path | None, passphrase: str | None, as_json: bool) -> None:
    """Print or write the newest CRL; with --passphrase sign a new one first."""
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - `pki --help` stays quick

    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - the same
    from tpm_mtls.files import write_atomic  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority:
        if passphrase:
            sign_crl(authority, read_secret(passphrase, what="passphrase"), root=root)
        newest = _newest(authority, root=root)
    pem = newest.crl.public_bytes(Encoding.PEM)
    if out is not None:
        write_atomic(out, newest.der if der else pem)
    facts = {
        "number": newest.number,
        "this_update": newest.this_update.isoformat(),
        "next_update": newest.next_update.isoformat(),
        "entries": len(newest.crl),
    }
    if der and out is None and not as_json:
        click.echo(newest.der, nl=False)
        return
    answer(facts | {"pem": pem.decode()}, str(out) if out else pem.decode().rstrip(), as_json=as_json)


def find_records(connection: Connection, *, serial: str | None, device: str | None) -> list[Record]:
    """The certificate with the serial number, or all of the device or server, oldest first; at least one.

    Raises:
        StateError: there is none.
        UsageError: not a serial number.
    """
    from tpm_mtls_pki import records  # noqa: PLC0415 - `pki --help` stays quick

    if serial is not None:
        one = records.find(connection, records.parse_serial(serial))
        found = [one] if one else []
    else:
        found = records.of_subject(connection, device or "")
    if not found:
        raise StateError("this CA issued no such certificate", hint="see: tpm-mtls pki list")
    return found


def sign_crl(authority: Authority, passphrase: Secret, *, root: bool = False) -> None:
    """Signs the next CRL and writes its file.

    Raises:
        CredentialError: the passphrase is wrong.
        StorageError: the store or the file cannot be written.
    """
    from tpm_mtls_pki import crl as lists  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import CRL, ROOT_CRL  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    issuer = authority.unlock_root(passphrase) if root else authority.unlock(passphrase)
    lifetime = lists.ROOT_LIFETIME if root else lists.ISSUING_LIFETIME
    name: lists.Name = "root" if root else "issuing"
    with authority.database.writing() as connection:
        lists.issue_crl(connection, name, issuer, lifetime=lifetime, now=utc_now())
    lists.publish(authority.database, name, authority.folder / (ROOT_CRL if root else CRL))


def _newest(authority: Authority, *, root: bool) -> StoredCrl:
    from tpm_mtls_pki import crl as lists  # noqa: PLC0415 - `pki --help` stays quick

    with authority.database.reading() as connection:
        newest = lists.newest(connection, "root" if root else "issuing")
    if newest is None:
        raise StateError("there is no CRL", hint="sign one: tpm-mtls pki crl --passphrase prompt")
    return newest
