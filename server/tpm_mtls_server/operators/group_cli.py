"""``tpm-mtls server group``: what devices are held against, by groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls.tables import plain
from tpm_mtls_server.operators.cli_common import by_option, database_option, open_registry, print_list, utc_now

if TYPE_CHECKING:
    from tpm_mtls_server.registry import GroupRow, ReferenceRow, Registry

_COLUMNS = {"name": "group", "mode": "mode", "pcrs": "PCRs"}

_file = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=CommandGroup)
def group() -> None:
    """Groups of devices, and what their devices should boot. A device that nobody moved is in the group "default".

    \b
    learn    each against the first quote of its own that passed
    approve  each against what you approved: device approve
    values   all against values that you give: set --add-values
    signed   all against policies that you sign: set --add-signer, --add-signed
    """  # noqa: D301 - click's marker for a block that is not re-wrapped


@group.command("list", epilog="Example: tpm-mtls server group list")
@database_option
@json_option
def list_groups(*, database: str, as_json: bool) -> None:
    """List the groups."""
    with open_registry(database) as registry:
        found = registry.groups.all()
    rows = [_facts(each) for each in found]
    if not as_json:
        rows = [row | {"pcrs": ",".join(map(str, row["pcrs"])) or "0-15"} for row in rows]
    print_list("groups", rows, _COLUMNS, empty="no groups", as_json=as_json)


@group.command(epilog="Example: tpm-mtls server group show default")
@click.argument("name")
@database_option
@json_option
def show(name: str, *, database: str, as_json: bool) -> None:
    """Show a group, and what its devices should boot."""
    with open_registry(database) as registry:
        _answer(registry, name, as_json=as_json)


@group.command("set", epilog="\b\nExample: tpm-mtls server group set gateways --mode values --add-values image-42.json")
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["learn", "approve", "values", "signed"]),
    help="What its devices are held against.  [default at first: learn]",
)
@click.option(
    "--pcrs", metavar="LIST", help="The PCRs that count with a baseline, like 0,2,4,7; all: 0-15.  [at first: 0-15]"
)
@click.option("--add-values", type=_file, multiple=True, metavar="F", help="A state: policy record, pcr predict.")
@click.option("--add-signer", type=_file, multiple=True, metavar="F", help="Public key (PEM) of who signs policies.")
@click.option("--add-signed", type=_file, multiple=True, metavar="F", help="A policy signed by one: policy sign.")
@click.option("--remove", type=int, multiple=True, metavar="NUMBER", help="Take a reference out, as `group show` says.")
@by_option
@database_option
@json_option
def set_group(  # noqa: PLR0913 - one argument for each option
    name: str,
    *,
    mode: str | None,
    pcrs: str | None,
    add_values: tuple[Path, ...],
    add_signer: tuple[Path, ...],
    add_signed: tuple[Path, ...],
    remove: tuple[int, ...],
    by: str,
    database: str,
    as_json: bool,
) -> None:
    """Make a group or change it; what is not given stays as it is. Its devices are asked for a quote at once."""
    from tpm_mtls_server.operators import references  # noqa: PLC0415 - `server --help` stays quick
    from tpm_mtls_server.registry import Mode, ReferenceKind  # noqa: PLC0415 - the same

    numbers = None if pcrs is None else parse_pcrs(pcrs)
    new = [(ReferenceKind.VALUES, references.read_values(path)) for path in add_values]
    new += [(ReferenceKind.SIGNER, references.read_signer_key(path)) for path in add_signer]
    now = utc_now()
    with open_registry(database, make=True) as registry:
        known = {each.name for each in registry.groups.all()}
        signers = [each.content for each in registry.groups.references(name) if each.kind is ReferenceKind.SIGNER]
        signers += [content for kind, content in new if kind is ReferenceKind.SIGNER]
        new += [(ReferenceKind.SIGNED, references.read_signed(path, signers)) for path in add_signed]
        if mode is not None or numbers is not None or name not in known:
            registry.groups.define(name, mode=None if mode is None else Mode(mode), pcrs=numbers, by=by, now=now)
        for kind, content in new:
            registry.groups.add_reference(name, kind, content, by=by, now=now)
        for number in remove:
            registry.groups.remove_reference(number, by=by, now=now)
        _answer(registry, name, as_json=as_json)


def parse_pcrs(text: str) -> tuple[int, ...]:
    """The numbers in ``0,2,4-7``; none for all of them.

    Raises:
        UsageError: that is no list of PCRs.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"not a list of PCRs: {text[:60]!r}", hint="like 0,2,4,7 or 0-15")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return () if found == set(range(16)) else tuple(sorted(found))


def _answer(registry: Registry, name: str, *, as_json: bool) -> None:
    found = registry.groups.get(name)
    references = registry.groups.references(name)
    facts = _facts(found) | {"references": [_reference_facts(each) for each in references]}
    lines = [
        f"{found.name}: {found.mode}",
        f"  PCRs: {', '.join(map(str, found.pcrs)) or '0 to 15'}",
        *(f"  {each.id}: {_reference_words(each)}" for each in references),
    ]
    answer(facts, "\n".join(map(plain, lines)), as_json=as_json)


def _facts(found: GroupRow) -> dict[str, Any]:
    return {"name": found.name, "mode": found.mode, "pcrs": list(found.pcrs)}


def _reference_facts(reference: ReferenceRow) -> dict[str, Any]:
    return {
        "id": reference.id,
        "kind": reference.kind,
        "digest": reference.digest,
        "added_at": f"{reference.added_at:%Y-%m-%dT%H:%M:%SZ}",
        "added_by": reference.added_by,
        "content": reference.content,
    }


def _reference_words(reference: ReferenceRow) -> str:
    from tpm_mtls_server.operators.references import describe  # noqa: PLC0415 - `server --help` stays quick

    added = f"added {reference.added_at:%Y-%m-%d} by {reference.added_by}"
    return f"{describe(reference.kind, reference.content)} ({added})"
