"""``tpm-mtls keygen``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import (
    answer,
    auth_option,
    endorsement_auth_option,
    json_option,
    owner_auth_option,
    state_dir_option,
    storage_options,
    tcti_option,
)
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PUBLIC_FILE, is_there, make_folder, remove_file, write_atomic
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import KeyFile, parse_handle, parse_key_reference
from tpm_mtls.policy.files import policy_path
from tpm_mtls.policy.options import policy_options
from tpm_mtls_keygen.cli_common import (
    created,
    form_options,
    key_form,
    key_option,
    open_for_keys,
)

if TYPE_CHECKING:
    from tpm_mtls.policy.new_policy import NewPolicy

_IDENTITY = ("renew", "restore", "status")
_TRANSFER = ("import", "export")

_NEXT = """\
tpm-mtls: note: the key works once a policy that the operator signed is in {folder} (tpm-mtls policy sign)
tpm-mtls: note: the counter stands at {counter}: sign with --version {counter} or more"""


class _Keygen(CommandGroup):
    """Imports the enrollment commands only when they are named: they need an HTTP client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "first-boot", *_IDENTITY, *_TRANSFER])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "first-boot":
            from tpm_mtls_keygen import first_boot_cli  # noqa: PLC0415 - one command at a time

            return first_boot_cli.first_boot
        if cmd_name in _IDENTITY:
            from tpm_mtls_keygen import identity_cli  # noqa: PLC0415 - the same

            commands = (identity_cli.renew, identity_cli.restore, identity_cli.status)
            return dict(zip(_IDENTITY, commands, strict=True))[cmd_name]
        if cmd_name in _TRANSFER:
            from tpm_mtls_keygen import transfer_cli  # noqa: PLC0415 - one command at a time

            return {"import": transfer_cli.import_, "export": transfer_cli.export}[cmd_name]
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Keygen)
def keygen() -> None:
    """Keys in the TPM: create, request a certificate, show, list, remove, import, export; and first boot."""


@keygen.command(epilog="Example: tpm-mtls keygen create --out device.key.pem")
@click.option(
    "--algorithm",
    type=click.Choice([algorithm.value for algorithm in KeyAlgorithm]),
    default=KeyAlgorithm.ECC_P256.value,
    show_default=True,
    help="Kind and size of the key.",
)
@form_options
@policy_options
@auth_option("the new key's authorization value")
@storage_options
@state_dir_option
@tcti_option
@json_option
def create(  # noqa: PLR0913 - one parameter per option
    *,
    algorithm: str,
    out: Path | None,
    handle: str | None,
    pcrs: str | None,
    pcr_values: tuple[Path, ...],
    policy_signer: Path | None,
    policy_ref: str | None,
    counter: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Make a new key inside the TPM and print its key reference.

    Its parent is the storage root key at 0x81000001, made if absent. The private key never leaves the TPM.

    With --pcrs, --pcr-values or --policy-signer the TPM uses it only while the machine has booted what was agreed on.
    The policy is written beside the key file, or for a handle into the identity folder: tpm-mtls policy show, check.
    """
    from tpm_mtls.policy.new_policy import make_policy, read_wish  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.keys import create_key  # noqa: PLC0415 - imports tpm2-pytss

    form = key_form(out, handle)
    wish = read_wish(
        pcrs=pcrs, pcr_values=pcr_values, policy_signer=policy_signer, policy_ref=policy_ref, counter=counter
    )
    folder = state_dir if out is None else out.absolute().parent
    if wish is not None:
        make_folder(folder)
    authorization = read_authorization(auth, confirm=True)
    with open_for_keys(tcti, owner_auth, srk_auth) as tpm:
        policy = None
        if wish is not None:
            with_authorization = authorization is not None
            policy = make_policy(tpm, wish, folder, with_authorization=with_authorization, now=datetime.now(UTC))
        key = create_key(tpm, KeyAlgorithm(algorithm), form, authorization=authorization, policy=policy)
    facts = created(key) | (_policy_facts(policy, key.public.name) if policy else {})
    answer(facts, str(key.reference), as_json=as_json)
    if policy is not None and policy.counter is not None:
        click.echo(_NEXT.format(folder=folder, counter=policy.counter), err=True)


def _policy_facts(policy: NewPolicy, name: bytes) -> dict[str, Any]:
    file = str(policy_path(policy.folder, name))
    return {"policy": policy.digest.hex(), "policy_file": file, "counter": policy.counter}


@keygen.command(epilog="Example: tpm-mtls keygen csr --key device.key.pem --out device.csr.pem")
@key_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the request goes (PEM)."
)
@click.option(
    "--subject-cn", metavar="NAME", help="The subject's common name; empty without it (the CA decides anyway)."
)
@auth_option()
@storage_options
@state_dir_option
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
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Write a certificate request (PKCS #10), signed inside the TPM."""
    from tpm_mtls_keygen.csr import build_csr, csr_pem  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.keys import load_key  # noqa: PLC0415 - the same

    key = parse_key_reference(reference)
    authorization = read_authorization(auth)
    with open_for_keys(tcti, owner_auth, srk_auth, key=key, beside=state_dir) as tpm:
        request = build_csr(tpm, load_key(tpm, key, authorization=authorization), common_name=subject_cn)
    write_atomic(out, csr_pem(request), mode=PUBLIC_FILE)
    answer({"csr": str(out), "key": str(key)}, str(out), as_json=as_json)


@keygen.command(epilog="Example: tpm-mtls keygen show --key handle:0x81000100")
@click.option("--key", "reference", metavar="KEY", help="A TSS2 PEM file, or a handle like handle:0x81000100.")
@click.option("--ek", is_flag=True, help="The endorsement key by which a CA knows this TPM: print its EK hash.")
@endorsement_auth_option
@state_dir_option
@tcti_option
@json_option
def show(
    *,
    reference: str | None,
    ek: bool,
    endorsement_auth: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Print what a key is: algorithm, parent, attributes, Name, policy, public key.

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
        with open_tpm(tcti, endorsement_authorization=read_hierarchy_authorization(endorsement_auth)) as tpm:
            endorsement = describe_endorsement(tpm)
        answer(endorsement, str(endorsement["ek_hash"]), as_json=as_json)
        return
    key = parse_key_reference(reference)
    if isinstance(key, KeyFile) and not key.is_tss2():
        from tpm_mtls_keygen.software_key import describe_software_key  # noqa: PLC0415 - only for such a key

        facts = describe_software_key(key.path)
        answer(facts, "\n".join(f"{name:<14}{facts[name]}" for name in facts if name != "public_key"), as_json=as_json)
        return
    if isinstance(key, KeyFile):
        found = describe_file(key.path, beside=state_dir)
    else:
        with open_tpm(tcti) as tpm:
            found = describe_handle(tpm, key.handle, beside=state_dir)
    answer(found.as_dict(), as_text(found), as_json=as_json)


@keygen.command("list", epilog="Example: tpm-mtls keygen list --json")
@state_dir_option
@tcti_option
@json_option
def list_(*, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """List everything that is persistent in the TPM: whose it is, or what it is for."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.describe import list_objects  # noqa: PLC0415 - the same

    with open_tpm(tcti) as tpm:
        found = list_objects(tpm, beside=state_dir)
    if as_json:
        answer({"objects": [each.as_dict() for each in found]}, "", as_json=True)
        return
    from tpm_mtls_keygen.table import print_objects  # noqa: PLC0415 - imports rich

    print_objects(found)


@keygen.command(epilog="Example: tpm-mtls keygen remove --handle 0x81000100 --yes")
@click.option("--handle", required=True, metavar="HANDLE", help="The persistent handle, from 0x81000100 on.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@owner_auth_option
@state_dir_option
@tcti_option
@json_option
def remove(*, handle: str, yes: bool, owner_auth: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Remove a persistent key, for good: nobody can bring it back. Its policy in the identity folder goes with it."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.keys import check_removable  # noqa: PLC0415 - the same

    number = parse_handle(handle.removeprefix("handle:"))
    with open_tpm(tcti, owner_authorization=read_hierarchy_authorization(owner_auth)) as tpm:
        public = check_removable(tpm, number)
        if not yes:
            _confirm(f"Remove {public} at {number:#010x} for good?")
        file = policy_path(state_dir, public.name)
        has_file = bool(public.policy) and is_there(file)
        tpm.remove_persistent(number)
    if has_file:
        remove_file(file)
    answer({"removed": f"handle:{number:#010x}", "name": public.name.hex()}, f"removed {number:#010x}", as_json=as_json)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked for confirmation: no terminal", hint="give --yes")
    if not click.confirm(question, err=True):
        raise UsageError("not confirmed, nothing was changed", hint="answer y, or give --yes")
