"""``tpm-mtls pki group``: the rules for groups of devices."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls_pki.cli_common import ca_dir_option, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_pki.groups import Group


@click.group(cls=CommandGroup)
def group() -> None:
    """Groups of devices and their rules. TPMs that are not on the allow-list are in the group "default"."""


@group.command("set", epilog="\b\nExample: tpm-mtls pki group set --ca-dir ./ca --name default --approval never")
@ca_dir_option
@click.option("--name", required=True, help="The group; it is made if it is not there.")
@click.option(
    "--approval",
    type=click.Choice(["never", "unlisted", "always"]),
    help="Whose first certificate waits for pki approval: nobody's, that of TPMs which are not on the allow-list and "
    "show no token, everybody's.  [default at first: unlisted]",
)
@click.option(
    "--naming",
    type=click.Choice(["ek", "asked"]),
    help="How a device without a given name is named: after its endorsement key, or as it asks and you approve.  "
    "[default at first: ek]",
)
@click.option("--imported/--no-imported", default=None, help="Whether imported TLS keys will do.  [at first: no]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="HEX|none|any",
    help="An acceptable authorization policy of TLS keys (tpm-mtls policy show), 'none' for keys without, or 'any' for "
    "all; may be repeated; replaces those there were.  [at first: none]",
)
@json_option
def set_group(
    ca_dir: Path,
    *,
    name: str,
    approval: str | None,
    naming: str | None,
    imported: bool | None,
    policies: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make or change a group; what is not given stays as it is."""
    from tpm_mtls_pki import groups  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    changes: dict[str, Any] = {}
    if approval is not None:
        changes["approval"] = groups.ApprovalRule(approval)
    if naming is not None:
        changes["naming"] = groups.Naming(naming)
    if imported is not None:
        changes["imported"] = imported
    if policies:
        changes["policies"] = groups.parse_policies(policies)
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        changed = dataclasses.replace(groups.find(connection, groups.check_group_name(name)), **changes)
        groups.save(connection, changed, now=utc_now())
    facts = _facts(changed)
    answer(facts, "\n".join(f"{key + ':':<10} {value}" for key, value in facts.items()), as_json=as_json)


@group.command("list", epilog="Example: tpm-mtls pki group list --ca-dir ./ca")
@ca_dir_option
@json_option
def list_groups(ca_dir: Path, *, as_json: bool) -> None:
    """List the groups and their rules."""
    from tpm_mtls_pki import groups  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = groups.listing(connection)
    print_table("groups", [_facts(each) for each in found], empty="no groups", wrap=["policies"], as_json=as_json)


def _facts(group: Group) -> dict[str, object]:
    return {
        "name": group.name,
        "approval": group.approval.value,
        "naming": group.naming.value,
        "imported": group.imported,
        "policies": " ".join(sorted(each.hex() or "none" for each in group.policies or ())) or "any",
    }
