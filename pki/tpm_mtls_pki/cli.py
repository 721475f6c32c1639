"""``tpm-mtls pki``: the CA's commands. Each imports what it needs when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option, progress
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls_pki.cli_allow import allow
from tpm_mtls_pki.cli_approval import approval, release
from tpm_mtls_pki.cli_common import ca_dir_option, passphrase_option, print_table
from tpm_mtls_pki.cli_ek_roots import ek_roots
from tpm_mtls_pki.cli_group import group
from tpm_mtls_pki.cli_issue import issue
from tpm_mtls_pki.cli_revocation import crl, revoke
from tpm_mtls_pki.cli_serve import serve
from tpm_mtls_pki.cli_token import token

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_pki.records import Record


@click.group(cls=CommandGroup)
def pki() -> None:
    """A small CA: issues, renews and revokes the certificates of devices and servers.

    It needs no TPM. Its keys are encrypted with a passphrase and never leave its folder.
    """


for _command in (issue, revoke, crl, token, serve, ek_roots, allow, group, approval, release):
    pki.add_command(_command)


@pki.command(epilog='\b\nExample: tpm-mtls pki init --ca-dir ./ca --name "Example CA" --passphrase prompt')
@ca_dir_option
@click.option("--name", required=True, help="The CA's name, for its certificates.")
@passphrase_option("the passphrase that will protect the keys")
@click.option("--root-passphrase", metavar="SOURCE", help="Another one for the root's key.  [default: the same]")
@click.option("--crl-url", metavar="URL", help="Where the CRLs will be: URL/issuing.crl and URL/root.crl.")
@click.option("--database", metavar="URL", help="Keep the store in another database than SQLite in the folder.")
@json_option
def init(
    ca_dir: Path,
    *,
    name: str,
    passphrase: str,
    root_passphrase: str | None,
    crl_url: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Make a CA: a root (P-384, 20 years) and an issuing CA (P-256, 10 years); all of it or nothing.

    Give root.pem, which it prints, to everybody who is to trust this CA.
    """
    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki import authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    secret = read_secret(passphrase, what="passphrase", confirm=True)
    root_secret = read_secret(root_passphrase, what="root's passphrase", confirm=True) if root_passphrase else secret
    settings = authority.Settings(name=name, crl_url=crl_url, database=database)
    progress("making two keys and two certificates …")
    authority.create_authority(ca_dir, settings, passphrase=secret, root_passphrase=root_secret, now=utc_now())
    files = {"root": str(ca_dir / authority.ROOT), "issuing": str(ca_dir / authority.ISSUING)}
    answer({"ca_dir": str(ca_dir), **files}, files["root"], as_json=as_json)


@pki.command("list", epilog="Example: tpm-mtls pki list --ca-dir ./ca --state valid")
@ca_dir_option
@click.option("--state", type=click.Choice(["valid", "expired", "revoked"]), help="Only those.")
@json_option
def list_certificates(ca_dir: Path, *, state: str | None, as_json: bool) -> None:
    """List the certificates that were issued."""
    from tpm_mtls_pki import records  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    now = utc_now()
    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = [each for each in records.listing(connection) if state in {None, each.state(now)}]
    print_table(
        "certificates",
        [
            {
                "serial": each.serial,
                "profile": each.profile,
                "subject": each.subject,
                "not_after": each.not_after.isoformat(),
                "state": each.state(now),
            }
            for each in found
        ],
        empty="no such certificates" if state else "no certificates",
        as_json=as_json,
    )


@pki.command(epilog="Example: tpm-mtls pki show --ca-dir ./ca --device sensor-17.example")
@ca_dir_option
@click.option("--serial", help="Serial number, hexadecimal.")
@click.option("--device", help="Name of a device (or server): its newest certificate.")
@json_option
def show(ca_dir: Path, *, serial: str | None, device: str | None, as_json: bool) -> None:
    """Show one certificate; without --serial and --device, the CA itself."""
    from tpm_mtls.certificates import certificates_pem  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.cli_revocation import find_records  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    if serial and device:
        raise UsageError("--serial and --device exclude each other", hint="give one of them")
    with open_authority(ca_dir) as authority:
        if not serial and not device:
            pem = certificates_pem([authority.issuing, authority.root]).decode()
            data = {"name": authority.settings.name, "crl_url": authority.settings.crl_url, "pem": pem}
            answer(data, f"{authority.settings.name}\n{pem.rstrip()}", as_json=as_json)
            return
        with authority.database.reading() as connection:
            record = find_records(connection, serial=serial, device=device)[-1]
    data = _facts(record) | {"state": record.state(utc_now())}
    pem = certificates_pem([record.certificate]).decode()
    lines = [f"{name + ':':<12} {value}" for name, value in data.items() if value is not None]
    answer(data | {"pem": pem}, "\n".join([*lines, pem.rstrip()]), as_json=as_json)


@pki.command(epilog="Example: tpm-mtls pki audit --ca-dir ./ca --verify")
@ca_dir_option
@click.option("--verify", is_flag=True, help="Check that no row was changed, and print the last one's digest.")
@json_option
def audit(ca_dir: Path, *, verify: bool, as_json: bool) -> None:
    """Print the audit log, or check it."""
    from tpm_mtls_pki import audit as log  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        if verify:
            rows, digest = log.verify(connection)
            answer({"rows": rows, "digest": digest}, f"{rows} rows, unchanged; the last is {digest}", as_json=as_json)
            return
        entries = list(log.entries(connection))
    print_table(
        "entries",
        [
            {"id": each.id, "at": each.at.isoformat(), "event": each.event, "subject": each.subject}
            | {"detail": dict(each.detail)}
            for each in entries
        ],
        empty="no entries",
        wrap=["detail"],
        as_json=as_json,
    )


def _facts(record: Record) -> dict[str, str | None]:
    return {
        "serial": record.serial,
        "profile": record.profile,
        "subject": record.subject,
        "not_before": record.not_before.isoformat(),
        "not_after": record.not_after.isoformat(),
        "key_digest": record.key_digest,
        "grounds": record.grounds,
        "revoked_at": record.revoked_at.isoformat() if record.revoked_at else None,
        "reason": record.reason,
    }
