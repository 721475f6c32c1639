"""``tpm-mtls keygen``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.authorization import read_authorization, read_secret
from tpm_mtls.cli_options import answer, auth_option, json_option, tcti_option
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PUBLIC_FILE, write_atomic
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import KeyFile, parse_handle, parse_key_reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.keys import KeyForm, TpmKey

F = TypeVar("F", bound="Callable[..., Any]")

_ENROLLMENT = ("first-boot", "renew", "status")

_LOST = """\
this key existed outside the TPM: whoever has a copy of it can still use it, and no CA can tell the copies apart
the TPM protects it from now on only; its attributes say that it was imported (no fixedTPM)
remove the source and all its copies: shred -u {source}
better still, make a new key inside the TPM: tpm-mtls keygen create"""


class _Keygen(click.Group):
    """Imports the enrollment commands only when they are named: they need an HTTP client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ENROLLMENT])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ENROLLMENT:
            from tpm_mtls_keygen import first_boot_cli  # noqa: PLC0415 - only enrollment needs it

            commands = (first_boot_cli.first_boot, first_boot_cli.renew, first_boot_cli.status)
            return dict(zip(_ENROLLMENT, commands, strict=True))[cmd_name]
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
    from tpm_mtls_keygen.keys import create_key  # noqa: PLC0415 - imports tpm2-pytss

    form = _form(out, handle)
    authorization = read_authorization(auth, confirm=True)
    with _open(tcti, owner_auth, srk_auth) as tpm:
        key = create_key(tpm, KeyAlgorithm(algorithm), form, authorization=authorization)
    answer(_created(key), str(key.reference), as_json=as_json)


def _open(tcti: str | None, owner_auth: str | None, srk_auth: str | None) -> AbstractContextManager[Tpm]:
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss

    owner, srk = read_authorization(owner_auth), read_authorization(srk_auth)
    return open_tpm(tcti, owner_authorization=owner, srk_authorization=srk)


def _created(key: TpmKey) -> dict[str, Any]:
    return {"key": str(key.reference), "algorithm": key.public.algorithm, "name": key.public.name.hex()}


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
    from tpm_mtls_keygen.csr import build_csr, csr_pem  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.keys import load_key  # noqa: PLC0415 - the same

    key = parse_key_reference(reference)
    authorization = read_authorization(auth)
    with _open(tcti, owner_auth, srk_auth) as tpm:
        request = build_csr(tpm, load_key(tpm, key, authorization=authorization), common_name=subject_cn)
    write_atomic(out, csr_pem(request), mode=PUBLIC_FILE)
    answer({"csr": str(out), "key": str(key)}, str(out), as_json=as_json)


@keygen.command(epilog="Example: tpm-mtls keygen show --key handle:0x81000100")
@click.option("--key", "reference", metavar="KEY", help="A TSS2 PEM file, or a handle like handle:0x81000100.")
@click.option("--ek", is_flag=True, help="The endorsement key by which a CA knows this TPM: print its EK hash.")
@click.option(
    "--endorsement-auth", metavar="SOURCE", help="The endorsement hierarchy's authorization value, if it has one."
)
@tcti_option
@json_option
def show(*, reference: str | None, ek: bool, endorsement_auth: str | None, tcti: str | None, as_json: bool) -> None:
    """Print what a key is: algorithm, parent, attributes, Name, public key.

    A PEM file is read without a TPM: it tells what it says of itself. With --ek, what a CA's allow-list takes: the
    SHA-256 of the endorsement key's public key (tpm-mtls pki allow add --ek-hash); --json says more.
    """
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.describe import (  # noqa: PLC0415 - the same
        as_text,
        describe_endorsement,
        describe_file,
        describe_handle,
    )

    if ek is (reference is not None):
        raise UsageError("say which key", hint="either --key KEY, or --ek")
    if reference is None:
        with open_tpm(tcti, endorsement_authorization=read_authorization(endorsement_auth)) as tpm:
            endorsement = describe_endorsement(tpm)
        answer(endorsement, str(endorsement["ek_hash"]), as_json=as_json)
        return
    key = parse_key_reference(reference)
    if isinstance(key, KeyFile):
        found = describe_file(key.path)
    else:
        with open_tpm(tcti) as tpm:
            found = describe_handle(tpm, key.handle)
    answer(found.as_dict(), as_text(found), as_json=as_json)


@keygen.command("list", epilog="Example: tpm-mtls keygen list --json")
@tcti_option
@json_option
def list_(*, tcti: str | None, as_json: bool) -> None:
    """List everything that is persistent in the TPM: whose it is, or what it is for."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.describe import list_objects  # noqa: PLC0415 - the same

    with open_tpm(tcti) as tpm:
        found = list_objects(tpm)
    if as_json:
        answer({"objects": [each.as_dict() for each in found]}, "", as_json=True)
        return
    from tpm_mtls_keygen.table import print_objects  # noqa: PLC0415 - imports rich

    print_objects(found)


@keygen.command(epilog="Example: tpm-mtls keygen remove --handle 0x81000100 --yes")
@click.option("--handle", required=True, metavar="HANDLE", help="The persistent handle, from 0x81000100 on.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--owner-auth", metavar="SOURCE", help="The owner hierarchy's authorization value, if it has one.")
@tcti_option
@json_option
def remove(*, handle: str, yes: bool, owner_auth: str | None, tcti: str | None, as_json: bool) -> None:
    """Remove a persistent key, for good: nobody can bring it back."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.keys import check_removable  # noqa: PLC0415 - the same

    number = parse_handle(handle.removeprefix("handle:"))
    with open_tpm(tcti, owner_authorization=read_authorization(owner_auth)) as tpm:
        public = check_removable(tpm, number)
        if not yes:
            _confirm(f"Remove {public} at {number:#010x} for good?")
        tpm.remove_persistent(number)
    answer({"removed": f"handle:{number:#010x}", "name": public.name.hex()}, f"removed {number:#010x}", as_json=as_json)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked for confirmation: no terminal", hint="give --yes")
    if not click.confirm(question, err=True):
        raise UsageError("not confirmed, nothing was changed", hint="answer y, or give --yes")


@keygen.command("import", epilog="Example: tpm-mtls keygen import --in old.key.pem --out device.key.pem")
@click.option(
    "--in",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The existing private key: a PEM file.",
)
@click.option("--passphrase", metavar="SOURCE", help="Its passphrase: prompt, file:PATH or credential:NAME.")
@_form_options
@auth_option("the authorization value that the key gets in the TPM")
@_hierarchy_options
@tcti_option
@json_option
def import_(  # noqa: PLR0913 - one parameter per option
    *,
    source: Path,
    passphrase: str | None,
    out: Path | None,
    handle: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Bring an existing private key into the TPM.

    Better is a new key that no other place ever knew: keygen create. What is imported existed outside before, and every
    copy of it stays valid. Its attributes say so (no fixedTPM), and a CA can refuse it.
    """
    from tpm_mtls_keygen.keys import import_key  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.software_key import read_software_key  # noqa: PLC0415 - imports cryptography

    form = _form(out, handle)
    software = read_software_key(source, passphrase=read_secret(passphrase, what="passphrase") if passphrase else None)
    authorization = read_authorization(auth, confirm=True)
    with _open(tcti, owner_auth, srk_auth) as tpm:
        key = import_key(tpm, software, form, authorization=authorization)
    for line in _LOST.format(source=source).splitlines():
        click.echo(f"tpm-mtls: warning: {line}", err=True)
    answer(_created(key) | {"imported": True}, str(key.reference), as_json=as_json)
