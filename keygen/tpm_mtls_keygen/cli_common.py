"""What several of keygen's commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import progress
from tpm_mtls.errors import UsageError
from tpm_mtls.identity import CERTIFICATE, DEFAULT_FOLDER
from tpm_mtls.key_reference import parse_handle
from tpm_mtls.service_manager import notify_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.keys import KeyForm, TpmKey

F = TypeVar("F", bound="Callable[..., Any]")


wait_option = click.option(
    "--wait",
    type=click.FloatRange(0, 7 * 86400),
    default=0.0,
    metavar="SECONDS",
    help="How long to keep trying when the CA cannot be reached, is busy or must be asked again.  [default: try once]",
)
"""``--wait``: passes the seconds to the parameter ``wait``."""


def tell(text: str) -> None:
    """Shows a line of progress, on a terminal and to the service manager."""
    progress(text)
    notify_status(text)


def key_option(function: F) -> F:
    """``--key``: passes the text to the parameter ``reference``."""
    return click.option(
        "--key", "reference", required=True, metavar="KEY", help="A TSS2 PEM file, or a handle like handle:0x81000100."
    )(function)


def form_options(function: F) -> F:
    """``--out`` and ``--handle``, for `key_form`."""
    out = click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Make a TSS2 PEM file (mode 0600); never overwrites.",
    )
    handle = click.option(
        "--handle", metavar="HANDLE|next", help="Keep it in the TPM at this persistent handle, or at the next free one."
    )
    return out(handle(function))


def key_form(out: Path | None, handle: str | None) -> KeyForm:
    """Where a key goes.

    Raises:
        UsageError: not exactly one of both is given.
        KeyReferenceError: ``handle`` is none.
    """
    from tpm_mtls_keygen.keys import FileForm, PersistentForm  # noqa: PLC0415 - imports tpm2-pytss

    if (out is None) == (handle is None):
        raise UsageError("say where the key goes", hint="either --out FILE, or --handle 0x81000100, or --handle next")
    if out is not None:
        return FileForm(out)
    return PersistentForm(None if handle in {None, "next"} else parse_handle(handle or ""))


def open_for_keys(
    tcti: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    *,
    key: KeyReference | None = None,
    beside: Path = DEFAULT_FOLDER,
) -> AbstractContextManager[Tpm]:
    """The TPM, for a command that makes or uses keys; through the relay where ``key``, which signs, has a policy.

    Args:
        tcti: where it is.
        owner_auth: source of the owner hierarchy's authorization value.
        srk_auth: source of the storage root key's.
        key: the key that will sign, if one will.
        beside: a folder where its policy may be, besides its own.
    """
    from tpm_mtls.relay import key_tcti, policy_folders  # noqa: PLC0415 - only where a key is used
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss

    owner, srk = read_hierarchy_authorization(owner_auth), read_authorization(srk_auth)
    where = tcti if key is None else key_tcti(tcti, policy_folders(key, beside / CERTIFICATE))
    return open_tpm(where, owner_authorization=owner, srk_authorization=srk)


def created(key: TpmKey) -> dict[str, Any]:
    """A new key, for ``--json``."""
    return {"key": str(key.reference), "algorithm": key.public.algorithm, "name": key.public.name.hex()}
