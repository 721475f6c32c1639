"""``tpm-mtls pki approval`` and ``pki release``: what an administrator decides about single TPMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls_pki.cli_common import ca_dir_option, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_pki.bindings import Binding


@click.group(cls=CommandGroup)
def approval() -> None:
    """TPMs whose evidence is sound and that wait for somebody to say that they are yours."""


@approval.command("list", epilog="Example: tpm-mtls pki approval list --ca-dir ./ca --state waiting")
@ca_dir_option
@click.option("--state", type=click.Choice(["waiting", "granted", "denied"]), help="Only those.")
@json_option
def list_approvals(ca_dir: Path, *, state: str | None, as_json: bool) -> None:
    """List the queue, with the names that the devices would get.

    Where name_taken is true, certificates were issued under that name before: to somebody without a TPM.
    """
    from tpm_mtls_pki import approvals, records  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = [each for each in approvals.listing(connection) if state in {None, each.state.value}]
        taken = {each.asked for each in found if each.asked and records.of_subject(connection, each.asked)}
    print_table(
        "approvals",
        [
            {
                "id": each.id,
                "state": each.state.value,
                "device": each.device or each.asked,
                "name_taken": each.asked in taken,  # certificates were issued under that name
                "requested_at": each.requested_at.isoformat(),
                "ek_hash": each.ek_hash,
                "endorsed_by": each.endorsed_by,
            }
            for each in found
        ],
        empty="no such requests" if state else "no TPM is in the queue",
        wrap=["endorsed_by"],
        as_json=as_json,
    )


@approval.command(epilog="\b\nExample: tpm-mtls pki approval grant --ca-dir ./ca --id 3 --device sensor-17.example")
@ca_dir_option
@click.option("--id", "number", type=int, required=True, help="The request's number; see: pki approval list.")
@click.option("--device", help="The device's name.  [default: the one in the list]")
@json_option
def grant(ca_dir: Path, *, number: int, device: str | None, as_json: bool) -> None:
    """Approve a TPM. It gets its certificate when it asks again, with new evidence."""
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki import approvals  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    given = check_device_name(device) if device is not None else None
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        granted = approvals.grant(connection, number, device=given, now=utc_now())
    text = f"request {number} is granted: {granted.device}, with the EK hash {granted.ek_hash}"
    answer({"granted": number, "device": granted.device}, text, as_json=as_json)


@approval.command(epilog="Example: tpm-mtls pki approval deny --ca-dir ./ca --id 3")
@ca_dir_option
@click.option("--id", "number", type=int, required=True, help="The request's number; see: pki approval list.")
@json_option
def deny(ca_dir: Path, *, number: int, as_json: bool) -> None:
    """Refuse a TPM, now and later; grant undoes it."""
    from tpm_mtls_pki import approvals  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        denied = approvals.deny(connection, number, now=utc_now())
    answer({"denied": number}, f"request {number} is denied: the EK hash {denied.ek_hash}", as_json=as_json)


@click.command(epilog="Example: tpm-mtls pki release --ca-dir ./ca --device sensor-17.example")
@ca_dir_option
@click.option("--device", help="The device's name.")
@click.option("--list", "listing", is_flag=True, help="List which TPM each device is bound to, and was.")
@json_option
def release(ca_dir: Path, *, device: str | None, listing: bool, as_json: bool) -> None:
    """Release a device's name from its TPM, so that another TPM can have it: after a repair, say.

    The old TPM loses its place on the allow-list. A device that was seen with a TPM needs one ever after. What was
    issued stays valid: see pki revoke.
    """
    from tpm_mtls_pki import bindings, records  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    if listing == (device is not None):
        raise UsageError("which device?", hint="give either --device or --list")
    with open_authority(ca_dir) as authority:
        if device is None:
            with authority.database.reading() as connection:
                found = bindings.listing(connection)
            print_table("bindings", [_facts(each) for each in found], empty="no bindings", as_json=as_json)
            return
        now = utc_now()
        with authority.database.writing() as connection:
            binding = bindings.release(connection, device, now=now)
            known = records.of_subject(connection, device)
    valid = [each.serial for each in known if each.state(now) == "valid"]
    text = f"{device} is released from the TPM {binding.ek_hash}"
    if valid:
        text += f"\n{len(valid)} certificates of it are valid still: tpm-mtls pki revoke --device {device}"
    answer({"released": device, "ek_hash": binding.ek_hash, "valid": valid}, text, as_json=as_json)


def _facts(binding: Binding) -> dict[str, str | None]:
    return {
        "device": binding.device,
        "ek_hash": binding.ek_hash,
        "bound_at": binding.bound_at.isoformat(),
        "released_at": binding.released_at.isoformat() if binding.released_at is not None else None,
    }
