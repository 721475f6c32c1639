"""``tpm-mtls pki token``: bootstrap tokens."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.durations import parse_duration
from tpm_mtls_pki.cli_common import ca_dir_option, print_table


@click.group(cls=CommandGroup)
def token() -> None:
    """Bootstrap tokens: each lets one device enroll one key, once."""


@token.command(epilog="\b\nExample: tpm-mtls pki token create --device sensor-17 --ttl 7d --out sensor-17.token")
@ca_dir_option
@click.option("--device", required=True, help="The device's name, as its certificate will have it.")
@click.option("--ttl", default="24h", show_default=True, metavar="TIME", help="How long it is good: 90s, 30m, 24h, 7d.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Write DEVICE:TOKEN, for keygen first-boot, to a file that only this user can read, instead of printing it.",
)
@json_option
def create(ca_dir: Path, *, device: str, ttl: str, out: Path | None, as_json: bool) -> None:
    """Make a token. It is shown once: the CA keeps its digest only."""
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls.files import PRIVATE_FILE, write_atomic  # noqa: PLC0415 - the same
    from tpm_mtls_pki import tokens  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    lifetime, now = timedelta(seconds=parse_duration(ttl)), utc_now()
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        number, text = tokens.create(connection, check_device_name(device), ttl=lifetime, now=now)
        if out is not None:
            # all that HTTP Basic needs; in the transaction: no file, no token
            write_atomic(out, f"{device}:{text}\n".encode(), mode=PRIVATE_FILE, hand_over=False)
    data = {"id": number, "device": device, "expires_at": (now + lifetime).isoformat()}
    data |= {"out": str(out)} if out is not None else {"token": text}
    answer(data, str(out) if out is not None else text, as_json=as_json)


@token.command("list", epilog="Example: tpm-mtls pki token list --ca-dir ./ca")
@ca_dir_option
@json_option
def list_tokens(ca_dir: Path, *, as_json: bool) -> None:
    """List the tokens and what became of them."""
    from tpm_mtls_pki import tokens  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    now = utc_now()
    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = tokens.listing(connection)
    print_table(
        "tokens",
        [
            {
                "id": each.id,
                "device": each.device,
                "expires_at": each.expires_at.isoformat(),
                "state": each.state(now),
                "serial": each.serial,
            }
            for each in found
        ],
        empty="no tokens",
        as_json=as_json,
    )


@token.command(epilog="Example: tpm-mtls pki token revoke --ca-dir ./ca --id 3")
@ca_dir_option
@click.option("--id", "number", type=int, required=True, help="The token's number; see: pki token list.")
@json_option
def revoke(ca_dir: Path, *, number: int, as_json: bool) -> None:
    """Revoke a token that was not used."""
    from tpm_mtls_pki import tokens  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        tokens.revoke(connection, number, now=utc_now())
    answer({"revoked": number}, f"token {number} is revoked", as_json=as_json)
