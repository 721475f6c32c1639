"""``tpm-mtls keygen``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.authorization import read_authorization
from tpm_mtls.cli_options import answer, auth_option, json_option, tcti_option
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PUBLIC_FILE, write_atomic
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import parse_handle, parse_key_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_keygen.keys import KeyForm

F = TypeVar("F", bound="Callable[..., Any]")

_FIRST_BOOT = ("first-boot", "status")


class _Keygen(click.Group):
    """Imports the enrollment commands only when they are named: they need an HTTP client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_FIRST_BOOT])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _FIRST_BOOT:
            from tpm_mtls_keygen import first_boot_cli  # noqa: PLC0415 - only enrollment needs it

            return {"first-boot": first_boot_cli.first_boot, "status": first_boot_cli.status}[cmd_name]
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Keygen)
def keygen() -> None:
    """Keys in the TPM: create, request a certificate, show, list, remove, import; and first boot."""


def _key_option(function: F) -> F:
    return click.option(
        "--key", "reference", required=True, metavar="KEY", help="A TSS2 PEM file, or a handle like handle:0x81000100."
    )(function)


def _form_options(function: F) -> F:
    out = click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Make a TSS2 PEM file (mode 0600); never overwrites.",
    )
    handle = click.option(
        "--handle", metavar="HANDLE|next", help="Keep it in the TPM at this persistent handle, or at the next free one."
    )
    return out(handle(function))


def _hierarchy_options(function: F) -> F:
    owner = click.option(
        "--owner-auth", metavar="SOURCE", help="The owner hierarchy's authorization value, if it has one."
    )
    srk = click.option(
        "--srk-auth", metavar="SOURCE", help="The storage root key's authorization value, if it has one."
    )
    return owner(srk(function))


def _form(out: Path | None, handle: str | None) -> KeyForm:
    from tpm_mtls_keygen.keys import FileForm, PersistentForm  # noqa: PLC0415 - imports tpm2-pytss

    if (out is None) == (handle is None):
        raise UsageError("say where the key goes", hint="either --out FILE, or --handle 0x81000100, or --handle next")
    if out is not None:
        return FileForm(out)
    return PersistentForm(None if handle in {None, "next"} else parse_handle(handle or ""))


@keygen.command(epilog="Example: tpm-mtls keygen create --out device.key.pem")
@click.option(
    "--algorithm",
    type=click.Choice([algorithm.value for algorithm in KeyAlgorithm]),
    default=KeyAlgorithm.ECC_P256.value,
    show_default=True,
    help="Kind and size of the key.",
)
@_form_options
@auth_option("the new key's authorization value")
@_hierarchy_options
@tcti_option
@json_option
def create(  # noqa: PLR0913 - one parameter per option
    *,
    algorithm: str,
    out: Path | None,
    handle: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Make a new key inside the TPM and print its key reference.

    Its parent is the storage root key at 0x81000001, made if absent. The private key never leaves the TPM.
    """
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.keys import create_key  # noqa: PLC0415 - the same

    form = _form(out, handle)
    authorization = read_authorization(auth, confirm=True)
    owner, srk = read_authorization(owner_auth), read_authorization(srk_auth)
    with open_tpm(tcti, owner_authorization=owner, srk_authorization=srk) as tpm:
        key = create_key(tpm, KeyAlgorithm(algorithm), form, authorization=authorization)
    data = {"key": str(key.reference), "algorithm": key.public.algorithm, "name": key.public.name.hex()}
    answer(data, str(key.reference), as_json=as_json)


@keygen.command(epilog="Example: tpm-mtls keygen csr --key device.key.pem --out device.csr.pem")
@_key_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the request goes (PEM)."
)
@click.option(
    "--subject-cn", metavar="NAME", help="The subject's common name; empty without it (the CA decides anyway)."
)
@auth_option()
@_hierarchy_options
@tcti_option
@json_option
def csr(  # noqa: PLR0913 - one parameter per option
    *,
    reference: str,
    out: Path,
    subject_cn: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Write a certificate request (PKCS #10), signed inside the TPM."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.csr import build_csr, csr_pem  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.keys import load_key  # noqa: PLC0415 - the same

    key = parse_key_reference(reference)
    authorization = read_authorization(auth)
    owner, srk = read_authorization(owner_auth), read_authorization(srk_auth)
    with open_tpm(tcti, owner_authorization=owner, srk_authorization=srk) as tpm:
        request = build_csr(tpm, load_key(tpm, key, authorization=authorization), common_name=subject_cn)
    write_atomic(out, csr_pem(request), mode=PUBLIC_FILE)
    answer({"csr": str(out), "key": str(key)}, str(out), as_json=as_json)
