"""``tpm-mtls policy``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.cli_options import answer, json_option, owner_auth_option, state_dir_option, tcti_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import PolicyRefusedError, UsageError
from tpm_mtls.files import PUBLIC_FILE, read_capped, write_atomic
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.policy.files import SIGNED_SUFFIX, find_signed_policies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls.policy.key_policy import KeyPolicy
    from tpm_mtls.policy.states import MachineState

F = TypeVar("F", bound="Callable[..., Any]")

_USUAL = "sha256:0,2,4,7"
_NOT_SATISFIED = 0x99D  # TPM_RC_POLICY_FAIL for the first session: what the TPM would answer
_FILE = click.Path(dir_okay=False, path_type=Path)
_OUT = click.option("--out", type=_FILE, required=True, metavar="FILE", help="Where it goes; never overwrites.")


@click.group(cls=CommandGroup)
def policy() -> None:
    """Policies of keys: what must hold for the TPM to use them.

    A key that was made with a policy (keygen create --pcrs, --policy-signer) works as long as the machine has booted
    what the policy says. The policy lies beside the key, in a file called after the key's Name.
    """


def _key_options(function: F) -> F:
    key = click.option(
        "--key", "reference", metavar="KEY", help="A TSS2 PEM file, or a handle.  [default: the identity folder's key]"
    )
    return key(state_dir_option(function))


@policy.command(epilog="Example: tpm-mtls policy record --out state.json")
@click.option("--pcrs", default=_USUAL, show_default=True, metavar="BANK:N,…", help="Which PCRs; join banks with +.")
@click.option("--description", default="", metavar="TEXT", help="What the machine has booted, for people.")
@_OUT
@tcti_option
@json_option
def record(*, pcrs: str, description: str, out: Path, tcti: str | None, as_json: bool) -> None:
    """Write down the present values of this machine's PCRs, for an operator to sign."""
    import msgspec  # noqa: PLC0415 - `policy --help` stays quick

    from tpm_mtls.policy.states import encode_state  # noqa: PLC0415 - imports msgspec

    state = _present_state(pcrs, tcti, description)
    write_atomic(out, encode_state(state), mode=PUBLIC_FILE, replace=False)
    answer({"state": str(out), "pcrs": msgspec.to_builtins(state.pcrs, str_keys=True)}, str(out), as_json=as_json)


@policy.command(
    epilog="\b\nExample: tpm-mtls policy sign --signer operator.key.pem --pcr-values state.json --version 5 "
    "--out update-5.signed-policy.json"
)
@click.option("--signer", type=_FILE, required=True, help="The operator's private key: PEM, ECC P-256 or RSA.")
@click.option("--passphrase", metavar="SOURCE", help="Its passphrase: prompt, file:PATH or credential:NAME.")
@click.option(
    "--pcr-values", type=_FILE, multiple=True, help="A state that policy record wrote; several: any of them will do."
)
@click.option("--pcrs", metavar="BANK:N,…", help="Besides, this machine's present state.")
@click.option(
    "--version", type=click.IntRange(0, 2**63 - 1), required=True, help="Greater than that of the policy before it."
)
@click.option("--policy-ref", default="", metavar="TEXT", help="As the key was made with.  [default: none]")
@click.option(
    "--counter",
    default="0x01500100",
    show_default=True,
    metavar="INDEX|none",
    help="The counter that retires policies with lower versions.",
)
@click.option("--description", default="", metavar="TEXT", help="What it is for, for people.")
@_OUT
@tcti_option
@json_option
def sign(  # noqa: PLR0913 - one parameter per option
    *,
    signer: Path,
    passphrase: str | None,
    pcr_values: tuple[Path, ...],
    pcrs: str | None,
    version: int,
    policy_ref: str,
    counter: str,
    description: str,
    out: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Approve states of a machine for all keys that were made with --policy-signer and this signer's public key.

    No TPM is needed, unless with --pcrs. Written into a device's identity folder it is in force; policy install does
    the same, and also retires the policies before it.
    """
    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - `policy --help` stays quick
    from tpm_mtls.policy.counters import not_beyond, parse_counter  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.policy.document import encode  # noqa: PLC0415 - the same
    from tpm_mtls.policy.signing import read_signing_key, sign_policy  # noqa: PLC0415 - imports tpm2-pytss's types
    from tpm_mtls.policy.states import any_of, read_state_file  # noqa: PLC0415 - imports msgspec

    if not out.name.endswith(SIGNED_SUFFIX):
        raise UsageError(f"nobody would look for a policy in {out.name}", hint=f"call it …{SIGNED_SUFFIX}")
    index = parse_counter(counter)
    states = [read_state_file(path) for path in pcr_values]
    states += [_present_state(pcrs, tcti)] if pcrs is not None else []
    approved = (*any_of(states), *([not_beyond(index, version)] if index is not None else []))
    key = read_signing_key(signer, passphrase=read_secret(passphrase, what="passphrase") if passphrase else None)
    signed = sign_policy(key, approved, policy_ref=policy_ref.encode(), version=version, description=description)
    write_atomic(out, encode(signed), mode=PUBLIC_FILE, replace=False)
    answer({"policy": str(out), "version": version, "digest": signed.digest}, str(out), as_json=as_json)


@policy.command(epilog="Example: tpm-mtls policy install update-5.signed-policy.json")
@click.argument("file", type=_FILE)
@click.option(
    "--retire-now",
    is_flag=True,
    help="Retire the older ones even if this one does not hold yet and the key stops working.",
)
@owner_auth_option
@_key_options
@tcti_option
@json_option
def install(
    *,
    file: Path,
    retire_now: bool,
    owner_auth: str | None,
    reference: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Verify a signed policy, put it beside the key, and retire the ones before it by advancing the counter.

    Before an update is booted the counter stays as it is: run it again afterwards. A second run changes nothing.
    """
    from tpm_mtls.authorization import read_hierarchy_authorization  # noqa: PLC0415 - `policy --help` stays quick
    from tpm_mtls.policy.document import parse_signed_policy  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.policy.installation import install_policy  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.policy.key_policy import require_policy  # noqa: PLC0415 - the same
    from tpm_mtls.policy.show import installed_lines  # noqa: PLC0415 - the same
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - the same

    signed = parse_signed_policy(read_capped(file), str(file))
    key, folders = _key(reference, state_dir)
    document = require_policy(_look_up(key, folders, tcti))
    with open_tpm(tcti, owner_authorization=read_hierarchy_authorization(owner_auth)) as tpm:
        done = install_policy(tpm, folders[0], signed, document, retire_now=retire_now)
    facts = {
        "policy": str(done.path),
        "changed": done.changed,
        "holds": done.holds,
        "counter_advanced": done.steps,
        "older_retired": done.older_retired,
    }
    answer(facts, installed_lines(done, signed.version), as_json=as_json)


@policy.command(epilog="Example: tpm-mtls policy show device.key.pem")
@click.argument("what", metavar="[KEY|FILE]", required=False)
@state_dir_option
@tcti_option
@json_option
def show(*, what: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Say what must hold: of a key, by default the identity folder's, or in a policy file."""
    from tpm_mtls.policy.show import describe_file, describe_key, lines  # noqa: PLC0415 - imports tpm2-pytss's types

    if what is not None and what.endswith(".json"):
        facts = describe_file(Path(what))
    else:
        key, folders = _key(what, state_dir)
        signed, _ = find_signed_policies(folders)
        facts = describe_key(str(key), _look_up(key, folders, tcti), signed)
    answer(facts, lines(facts), as_json=as_json)


@policy.command(epilog="Example: tpm-mtls policy check --key device.key.pem")
@_key_options
@tcti_option
@json_option
def check(*, reference: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Say whether the TPM would use the key now; if not, which PCR differs from when, and exit with 4."""
    from tpm_mtls.policy.key_policy import check_now  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.policy.key_remedy import key_remedy  # noqa: PLC0415 - the same
    from tpm_mtls.policy.show import lines, verdict_facts  # noqa: PLC0415 - the same
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - the same

    key, folders = _key(reference, state_dir)
    found = _look_up(key, folders, tcti)
    policy = found.document.policy if found.document else ()
    with open_tpm(tcti) as tpm:
        verdict, damaged = check_now(tpm, policy, folders)
    facts = verdict_facts(str(key), found, verdict, damaged)
    answer(facts, lines(facts), as_json=as_json)
    if not verdict.holds:
        signed, _ = find_signed_policies(folders)
        raise PolicyRefusedError(
            f"the TPM would refuse to use {key}: {verdict.obstacles[0]}",
            hint=key_remedy(
                found.public.name, policy, verdict, signed=signed, reference=reference, state_dir=state_dir
            ),
            rc=_NOT_SATISFIED,
        )


def _key(reference: str | None, state_dir: Path) -> tuple[KeyReference, list[Path]]:
    """The key, and the folders in which its policy may be."""
    from tpm_mtls.identity import CERTIFICATE, load_identity  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.relay import policy_folders  # noqa: PLC0415 - only where a key is named

    key = parse_key_reference(reference) if reference is not None else load_identity(state_dir).key
    return key, policy_folders(key, state_dir / CERTIFICATE)


def _look_up(key: KeyReference, folders: list[Path], tcti: str | None) -> KeyPolicy:
    from tpm_mtls.policy.key_policy import key_policy, read_public_area  # noqa: PLC0415 - imports tpm2-pytss

    return key_policy(read_public_area(key, tcti), folders)


def _present_state(pcrs: str, tcti: str | None, description: str = "") -> MachineState:
    from tpm_mtls.policy.states import parse_selection, read_state  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss

    parse_selection(pcrs)  # what is wrong is told before the TPM is asked
    with open_tpm(tcti) as tpm:
        return read_state(tpm.pcrs, pcrs, now=datetime.now(UTC), description=description)
