"""``tpm-mtls pki allow``: endorsement keys that the administrator vouches for."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls_pki.cli_common import ca_dir_option, print_table


@click.group(cls=CommandGroup)
def allow() -> None:
    """The allow-list: TPMs that are yours, by the hash of their endorsement key (EK).

    The hash is the SHA-256 of the key's SubjectPublicKeyInfo: openssl pkey -pubin -in ek.pem -outform DER | sha256sum.
    A TPM on the list needs no certificate of its maker.
    """


@allow.command(epilog="Example: tpm-mtls pki allow add --ca-dir ./ca --file manifest.csv")
@ca_dir_option
@click.option("--ek-hash", metavar="HEX", help="One endorsement key, by its hash.")
@click.option(
    "--ek-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="One endorsement key, by its certificate (PEM or DER), of which nothing is verified.",
)
@click.option("--device", help="Its device's name.  [default: as the group's rule says]")
@click.option("--group", help="Its group.  [default: default]")
@click.option(
    "--file",
    "manifest",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Many, from a CSV file with the columns ek_hash,device,group.",
)
@json_option
def add(
    ca_dir: Path,
    *,
    ek_hash: str | None,
    ek_cert: Path | None,
    device: str | None,
    group: str | None,
    manifest: Path | None,
    as_json: bool,
) -> None:
    """Put one endorsement key, or all of a manifest, on the list: all of them or none."""
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls.files import read_capped  # noqa: PLC0415 - the same
    from tpm_mtls_pki import allow_list  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same
    from tpm_mtls_pki.groups import DEFAULT, check_group_name  # noqa: PLC0415 - the same

    if sum(each is not None for each in (ek_hash, ek_cert, manifest)) != 1:
        raise UsageError("which endorsement key?", hint="give one of --ek-hash, --ek-cert and --file")
    if manifest is not None:
        if device is not None or group is not None:
            raise UsageError("a manifest has its own device names and groups", hint="leave --device and --group out")
        entries = allow_list.parse_manifest(read_capped(manifest, limit=allow_list.MANIFEST_LIMIT))
    else:
        known = allow_list.check_ek_hash(ek_hash) if ek_hash is not None else _hash_of(ek_cert or Path())
        name = check_device_name(device) if device is not None else None
        entries = [allow_list.Entry(known, name, check_group_name(group or DEFAULT))]
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        allow_list.add(connection, entries, now=utc_now())
    rows = [{"ek_hash": each.ek_hash, "device": each.device, "group": each.group} for each in entries]
    text = f"{len(rows)} endorsement keys are on the list now" if manifest else entries[0].ek_hash
    answer({"added": rows}, text, as_json=as_json)


@allow.command("list", epilog="Example: tpm-mtls pki allow list --ca-dir ./ca")
@ca_dir_option
@json_option
def list_allowed(ca_dir: Path, *, as_json: bool) -> None:
    """List the endorsement keys, with the devices that they are bound to."""
    from tpm_mtls_pki import allow_list, bindings  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = allow_list.listing(connection)
        bound = {each.ek_hash: each.device for each in bindings.listing(connection) if each.released_at is None}
    print_table(
        "allowed",
        [
            {
                "ek_hash": each.ek_hash,
                "device": each.device,
                "group": each.group,
                "bound_to": bound.get(each.ek_hash),
            }
            for each in found
        ],
        empty="the allow-list is empty",
        as_json=as_json,
    )


@allow.command(epilog="Example: tpm-mtls pki allow remove --ca-dir ./ca --ek-hash 9f86d081884c7d65…")
@ca_dir_option
@click.option("--ek-hash", required=True, metavar="HEX", help="The endorsement key's hash.")
@json_option
def remove(ca_dir: Path, *, ek_hash: str, as_json: bool) -> None:
    """Take one off the list. Certificates that were issued stay valid: revoke them if they should not."""
    from tpm_mtls_pki import allow_list  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    known = allow_list.check_ek_hash(ek_hash)
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        allow_list.remove(connection, known, now=utc_now())
    answer({"removed": known}, f"no longer on the list: {known}", as_json=as_json)


def _hash_of(path: Path) -> str:
    from tpm_mtls.certificates import certificate_spki  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls.files import read_capped  # noqa: PLC0415 - the same
    from tpm_mtls.structures import ek_hash  # noqa: PLC0415 - the same
    from tpm_mtls_pki.ek_roots import parse_file  # noqa: PLC0415 - the same

    return ek_hash(certificate_spki(parse_file(read_capped(path), name=str(path))[0]))
