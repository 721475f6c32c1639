"""``tpm-mtls provision``."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import (
    answer,
    hierarchy_auth_option,
    json_option,
    progress,
    srk_auth_option,
    state_dir_option,
    tcti_option,
)
from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tpm_mtls_keygen.provision.plan import Item

F = TypeVar("F", bound="Callable[..., Any]")

_FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_CLEAR = "--i-know-this-destroys-keys"


def _present_options(function: F) -> F:
    """The authorization values that the TPM has."""
    for name in ("lockout", "endorsement", "owner"):
        function = hierarchy_auth_option(name, f"The {name} authorization that the TPM has, if nothing kept is it")(
            function
        )
    return function


@click.command(epilog="Example: tpm-mtls provision --plan hardening.toml")
@click.option("--plan", "planned", type=_FILE, metavar="FILE", help="Show what would be changed; - is stdin.")
@click.option("--apply", "applied", type=_FILE, metavar="FILE", help="Show and change it; - is stdin.")
@_present_options
@srk_auth_option
@click.option(
    _CLEAR,
    "destroys",
    metavar="NAME",
    help="Clear the TPM first: every key in it is lost. NAME is that of its storage root key.",
)
@state_dir_option
@tcti_option
@json_option
def provision(  # noqa: PLR0913 - one parameter per option
    *,
    planned: Path | None,
    applied: Path | None,
    owner_auth: str | None,
    endorsement_auth: str | None,
    lockout_auth: str | None,
    srk_auth: str | None,
    destroys: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Harden the TPM as a file says: authorizations, lockout, platform hierarchy, storage root and endorsement keys.

    \b
      [owner]
      authorization = "sealed:/var/lib/tpm-mtls/owner.sealed"       # or file:PATH
      [endorsement]
      authorization = "sealed:/var/lib/tpm-mtls/endorsement.sealed"
      keys = "certified"
      [lockout]
      authorization = "file:/var/lib/tpm-mtls/lockout"
      max_tries = 10
      recovery_time = "2h"
      lockout_recovery = "24h"
      [platform]
      disable = true

    Authorization values are made where none is kept, and written down before the TPM gets them. Run again it changes
    nothing; interrupted, the next run finishes. Nothing is ever cleared without being told so by the key's Name.
    """  # noqa: D301 - click's marker for a block that is not re-wrapped
    from tpm_mtls.files import make_folder  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm.hierarchies import Hierarchy  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.first_boot_folder import locked  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.provision.apply import Provisioning  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.provision.observe import Given  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.provision.settings import load_settings  # noqa: PLC0415 - the same

    file = applied or planned
    if file is None or (applied is not None and planned is not None):
        raise UsageError("say what to do", hint="either --plan hardening.toml, or --apply hardening.toml")
    settings = load_settings(file)
    name = _name(destroys) if destroys is not None else None
    sources = {
        Hierarchy.OWNER: owner_auth,
        Hierarchy.ENDORSEMENT: endorsement_auth,
        Hierarchy.LOCKOUT: lockout_auth,
    }
    values = {each: read_hierarchy_authorization(source) for each, source in sources.items()}
    given = Given({each: value for each, value in values.items() if value is not None})
    places = [state_dir, *settings.folders] if applied is not None else []
    for place in places:
        if place == state_dir or not place.is_dir():
            make_folder(place)
    with ExitStack() as locks:
        # where a value is kept nobody else may begin one; in one order, whoever shares some of them
        for folder in sorted({each.resolve() for each in places}):
            waiting = f"somebody else is at work in {folder}: waiting"
            locks.enter_context(locked(folder, waiting=partial(progress, waiting)))
        tpm = locks.enter_context(open_tpm(tcti, srk_authorization=read_authorization(srk_auth)))
        provisioning = Provisioning(tpm, settings, given, state_dir, destroys=name)
        if not as_json:
            _show(provisioning.plan)
        if applied is not None:
            provisioning.apply(progress)
    changes = sum(item.action is not None for item in provisioning.plan)
    data = {
        "applied": applied is not None,
        "changes": changes,
        "items": [{"name": item.name, "now": item.now, "change": item.change or None} for item in provisioning.plan],
    }
    done = f"{changes} changed" if applied is not None else f"{changes} to change"
    answer(data, done if changes else "nothing to change", as_json=as_json)


def _show(plan: Sequence[Item]) -> None:
    from tpm_mtls.pcr.presentation import print_rows  # noqa: PLC0415 - `--help` stays quick

    print_rows(("what", "now", "change"), [(item.name, item.now, item.change or "-") for item in plan])


def _name(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(
            f"{_CLEAR} takes the Name of the storage root key, in hexadecimal",
            hint="tpm-mtls provision --plan hardening.toml shows it",
        ) from error
