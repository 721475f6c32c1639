"""``tpm-mtls seal`` and ``tpm-mtls unseal``."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import answer, auth_option, json_option, state_dir_option, storage_options, tcti_option
from tpm_mtls.errors import UsageError
from tpm_mtls.files import refuse_existing
from tpm_mtls.policy.options import policy_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.sealed_blob import SealedBlob
    from tpm_mtls_agent.sealing.command import Authorizations

F = TypeVar("F", bound="Callable[..., Any]")

_FILE = click.Path(dir_okay=False, path_type=Path)
_PEM, _TOOLS = "pem", "tpm2-tools"
_COUNTER_NOTE = "tpm-mtls: note: the counter stands at {}: sign policies with --version {} or more"


def _common_options(function: F) -> F:
    """What both commands have."""
    options = [
        click.option(
            "--format",
            "form",
            type=click.Choice([_PEM, _TOOLS]),
            default=_PEM,
            show_default=True,
            help="One file, or tpm2-tools' two: FILE.pub and FILE.priv.",
        ),
        click.option("--nv", metavar="INDEX", help="In the TPM's NV memory, such as 0x01800001, instead of a file."),
        auth_option("the sealed data's authorization value"),
        storage_options,
        state_dir_option,
        tcti_option,
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command(epilog="Example: tpm-mtls seal --pcrs sha256:7 --in disk.key --out disk.sealed")
@click.option("--in", "source", type=_FILE, help="The secret.  [default: standard input]")
@click.option("--out", type=_FILE, help="Make this file; never overwrites.  [default: standard output]")
@policy_options
@click.option("--policy", "policy_file", type=_FILE, help="Or the policy of another object: its .policy.json file.")
@_common_options
def seal(  # noqa: PLR0913 - one parameter per option
    *,
    source: Path | None,
    out: Path | None,
    form: str,
    nv: str | None,
    policy_file: Path | None,
    pcrs: str | None,
    pcr_values: tuple[Path, ...],
    policy_signer: Path | None,
    policy_ref: str | None,
    counter: str | None,
    auth: str | None,
    srk_auth: str | None,
    owner_auth: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Seal a secret of up to 64 KiB: only this TPM gives it back, and only while what you name holds.

    \b
      tpm-mtls seal --pcrs sha256:7 < secret > secret.sealed
      tpm-mtls unseal < secret.sealed > secret

    What comes out is text and no secret; it goes into backups. A secret above 128 bytes is encrypted with AES-256-GCM,
    and its key sealed.
    """  # noqa: D301 - click's marker for a block that is not re-wrapped
    from tpm_mtls.policy.new_policy import read_wish  # noqa: PLC0415 - `seal --help` stays quick
    from tpm_mtls.sealed_blob import SECRET_LIMIT  # noqa: PLC0415 - the same
    from tpm_mtls.streams import read_input, write_output  # noqa: PLC0415 - the same
    from tpm_mtls_agent.sealing import command as seal_command  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_agent.sealing.nv_secret import parse_index  # noqa: PLC0415 - the same
    from tpm_mtls_agent.sealing.policy import chosen  # noqa: PLC0415 - the same

    index = parse_index(nv) if nv is not None else None
    _check_place(out, form, nv, tools_need="--out")
    wish = read_wish(
        pcrs=pcrs, pcr_values=pcr_values, policy_signer=policy_signer, policy_ref=policy_ref, counter=counter
    )
    policy = chosen(wish, policy_file)
    if out is not None and form == _PEM:
        refuse_existing(out)
    secret = read_input(source, limit=SECRET_LIMIT, what="secret")
    sealer = seal_command.Sealer(tcti, state_dir, _authorizations(auth, owner_auth, srk_auth, new=True), policy)
    if index is not None:
        name, file, stands = sealer.seal_into_nv(index, secret)
        facts = {"nv": f"{index:#010x}", "name": name.hex(), "policy_file": str(file) if file else None}
        answer(facts | {"counter": stands}, f"{index:#010x}", as_json=as_json)
    elif form == _TOOLS and out is not None:
        seal_command.check_for_tools(secret, out)
        blob, stands = sealer.seal(secret)
        files = [str(path) for path in seal_command.write_tools_files(blob, out)]
        answer(_blob_facts(blob) | {"files": files, "counter": stands}, "\n".join(files), as_json=as_json)
    else:
        blob, stands = sealer.seal(secret)
        if out is not None or not as_json:
            write_output(out, blob.encode(), hand_over=True)
        if out is not None or as_json:
            where = {"out": str(out)} if out is not None else {"blob": blob.encode().decode()}
            answer(_blob_facts(blob) | where | {"counter": stands}, str(out), as_json=as_json)
    if stands is not None:
        click.echo(_COUNTER_NOTE.format(stands, stands), err=True)


@click.command(epilog="\b\nExample: tpm-mtls unseal disk.sealed | cryptsetup open --key-file - /dev/sda3 data")
@click.argument("file", type=_FILE, required=False)
@click.option("--in", "source", type=_FILE, help="What seal wrote, as FILE.  [default: standard input]")
@click.option("--out", type=_FILE, help="Make this file (mode 0600); never overwrites.  [default: standard output]")
@click.option(
    "--signed-policy",
    "signed",
    type=_FILE,
    multiple=True,
    help="A policy that the operator signed; those beside the blob and in the identity folder are found.",
)
@click.option(
    "--pcrs",
    metavar="BANK:N,…",
    help="Only for what does not say its policy itself (--nv, tpm2-tools' files): it was sealed to these PCRs.",
)
@click.option("--pcr-values", type=_FILE, multiple=True, help="The same: with these values.")
@click.option("--policy-signer", type=_FILE, help="The same: to what this operator signs.")
@click.option("--policy-ref", metavar="TEXT", help="The same: for this use.")
@click.option("--policy", "policy_file", type=_FILE, help="The same: with the policy of this .policy.json file.")
@click.option(
    "--parent",
    metavar="HANDLE|ecc|rsa",
    help="The same: under the key at this persistent handle, or the one that tpm2_createprimary -G ecc or rsa makes.  "
    "[default: 0x81000001]",
)
@_common_options
def unseal(  # noqa: PLR0913 - one parameter per option
    *,
    file: Path | None,
    source: Path | None,
    out: Path | None,
    signed: tuple[Path, ...],
    pcrs: str | None,
    pcr_values: tuple[Path, ...],
    policy_signer: Path | None,
    policy_ref: str | None,
    policy_file: Path | None,
    parent: str | None,
    form: str,
    nv: str | None,
    auth: str | None,
    srk_auth: str | None,
    owner_auth: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Get a sealed secret back, byte for byte, on the TPM that sealed it.

    Only on a terminal a newline is added at the end. Where it is refused because something else was booted, the error
    says which PCR differs, and the exit status is 4.
    """
    from tpm_mtls.policy.new_policy import read_wish  # noqa: PLC0415 - `unseal --help` stays quick
    from tpm_mtls.sealed_blob import FILE_LIMIT, parse_blob  # noqa: PLC0415 - the same
    from tpm_mtls.streams import read_input, write_output  # noqa: PLC0415 - the same
    from tpm_mtls_agent.sealing import command as seal_command  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_agent.sealing.blobs import parse_parent  # noqa: PLC0415 - the same
    from tpm_mtls_agent.sealing.nv_secret import parse_index  # noqa: PLC0415 - the same
    from tpm_mtls_agent.sealing.policy import chosen  # noqa: PLC0415 - the same

    source = _one_of(file, source)
    index = parse_index(nv) if nv is not None else None
    _check_place(source, form, nv, tools_need="--in")
    wish = read_wish(pcrs=pcrs, pcr_values=pcr_values, policy_signer=policy_signer, policy_ref=policy_ref, counter=None)
    policy = chosen(wish, policy_file)
    under = parse_parent(parent) if parent is not None else None
    if out is not None:
        refuse_existing(out)
    sealer = seal_command.Sealer(tcti, state_dir, _authorizations(auth, owner_auth, srk_auth), policy, signed, under)
    beside = source.absolute().parent if source is not None else None
    if index is not None:
        secret = sealer.unseal_from_nv(index)
    elif form == _TOOLS and source is not None:
        secret = sealer.unseal(seal_command.read_tools_files(source), str(source), beside=beside)
    else:
        name = str(source) if source is not None else "the blob"
        blob = parse_blob(read_input(source, limit=FILE_LIMIT, what="blob", typed=False), name)
        secret = sealer.unseal(blob, name, beside=beside)
    if out is not None or not as_json:
        write_output(out, secret)
    if out is not None or as_json:
        where = {"out": str(out)} if out is not None else {"base64": base64.b64encode(secret).decode()}
        answer(where, str(out), as_json=as_json)


def _one_of(file: Path | None, source: Path | None) -> Path | None:
    if file is not None and source is not None:
        raise UsageError("there are two files to unseal", hint=f"leave --in out: tpm-mtls unseal {file}")
    return file or source


def _check_place(path: Path | None, form: str, nv: str | None, *, tools_need: str) -> None:
    if nv is not None and (path is not None or form != _PEM):
        raise UsageError("it is in the NV memory, or in a file", hint=f"with --nv, leave {tools_need} and --format out")
    if form == _TOOLS and path is None:
        raise UsageError("tpm2-tools have two files for it", hint=f"give {tools_need} NAME, for NAME.pub and NAME.priv")


def _authorizations(auth: str | None, owner: str | None, srk: str | None, *, new: bool = False) -> Authorizations:
    from tpm_mtls_agent.sealing.command import Authorizations  # noqa: PLC0415 - imports tpm2-pytss

    return Authorizations(
        read_authorization(auth, confirm=new), owner=read_hierarchy_authorization(owner), srk=read_authorization(srk)
    )


def _blob_facts(blob: SealedBlob) -> dict[str, Any]:
    public = blob.sealed.public
    return {
        "name": public.name.hex(),
        "policy": public.policy.hex() or None,
        "encrypted_with_sealed_key": blob.ciphertext is not None,
    }
