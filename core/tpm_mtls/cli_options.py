"""Options that several commands share, and the two ways of answering: for a person, or ``--json`` for a script."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.configuration import RELAY_USES, RELAY_VARIABLE
from tpm_mtls.identity import DEFAULT_FOLDER
from tpm_mtls.tcti import DEFAULT_TCTI, ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")


def tcti_option(function: F) -> F:
    """``--tcti``: where the TPM is; passes the text or none to the parameter ``tcti``."""
    return click.option(
        "--tcti",
        metavar="TCTI",
        help=f"Where the TPM is, such as {DEFAULT_TCTI} or swtpm:port=2321.  "
        f"[default: ${ENVIRONMENT}, then the configuration, then {DEFAULT_TCTI}]",
    )(function)


def relay_option(function: F) -> F:
    """``--relay``: when a TPM key is used through the relay; passes the word or none to the parameter ``relay``."""
    return click.option(
        "--relay",
        type=click.Choice(RELAY_USES),
        help="Use the key through the TPM relay: where it has a policy (auto), always, or never.  "
        f"[default: ${RELAY_VARIABLE}, then the configuration, then auto]",
    )(function)


def state_dir_option(function: F) -> F:
    """``--state-dir``: the identity folder; passes a path to the parameter ``state_dir``."""
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, readable=False, path_type=Path),  # commands that have no use for it work
        default=DEFAULT_FOLDER,
        show_default=True,
        metavar="DIR",
        help="The device's identity folder.",
    )(function)


def json_option(function: F) -> F:
    """``--json``: passes a bool to the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer as one JSON object on one line.")(function)


def auth_option(what: str = "the key's authorization value") -> Callable[[F], F]:
    """``--auth SOURCE``: passes the text or none to the parameter ``auth``, for `tpm_mtls.authorization`."""
    return click.option("--auth", metavar="SOURCE", help=f"Where {what} is: prompt, file:PATH or credential:NAME.")


def hierarchy_auth_option(hierarchy: str, what: str) -> Callable[[F], F]:
    """``--HIERARCHY-auth SOURCE``: the text or none, for `tpm_mtls.authorization.read_hierarchy_authorization`."""
    return click.option(
        f"--{hierarchy}-auth", metavar="SOURCE", help=f"{what}: prompt, file:PATH, credential:NAME or sealed:PATH."
    )


def owner_auth_option(function: F) -> F:
    """``--owner-auth SOURCE``; see `hierarchy_auth_option`."""
    return hierarchy_auth_option("owner", "The owner hierarchy's authorization value, if it has one")(function)


def endorsement_auth_option(function: F) -> F:
    """``--endorsement-auth SOURCE``; see `hierarchy_auth_option`."""
    return hierarchy_auth_option("endorsement", "The endorsement hierarchy's authorization value, if it has one")(
        function
    )


def srk_auth_option(function: F) -> F:
    """``--srk-auth SOURCE``: the text or none, for `tpm_mtls.authorization.read_authorization`."""
    return click.option(
        "--srk-auth",
        metavar="SOURCE",
        help="The storage root key's authorization value, if it has one: prompt, file:PATH or credential:NAME.",
    )(function)


def storage_options(function: F) -> F:
    """``--owner-auth`` and ``--srk-auth``: for commands that make or use something below the storage root key."""
    return owner_auth_option(srk_auth_option(function))


def answer(data: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints ``data`` as JSON if asked for, else ``text``."""
    if as_json:
        import msgspec  # noqa: PLC0415 - only scripts pay for it

        click.echo(msgspec.json.encode(data).decode())
    else:
        click.echo(text)


def progress(text: str) -> None:
    """One line of progress on stderr, for a person only: nothing when stderr is no terminal."""
    if sys.stderr.isatty():
        click.echo(text, err=True)
