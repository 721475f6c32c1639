"""``tpm-mtls keygen first-boot``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import (
    answer,
    auth_option,
    endorsement_auth_option,
    json_option,
    state_dir_option,
    storage_options,
    tcti_option,
)
from tpm_mtls.errors import UsageError
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import parse_handle
from tpm_mtls.policy.options import policy_options
from tpm_mtls.service_manager import notify_status
from tpm_mtls_keygen.cli_common import tell, wait_option
from tpm_mtls_keygen.first_boot_folder import KeyPlace

if TYPE_CHECKING:
    from tpm_mtls_keygen.first_boot_settings import Outcome, Settings, World
    from tpm_mtls_keygen.first_boot_steps import Wish


@click.command(
    "first-boot",
    epilog="\b\nExample: tpm-mtls keygen first-boot --ca https://ca.example:8443 --trust root.pem",
)
@click.option("--ca", "ca_url", required=True, metavar="URL", help="The EST server, like https://ca.example:8443.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The bootstrap token (mode 0600), as tpm-mtls pki token create --out writes it.  "
    "[default: none, the TPM vouches for the device]",
)
@click.option("--evidence", is_flag=True, help="Let the TPM vouch for the key besides the token, too.")
@click.option(
    "--trust",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The CA's root certificate, given to the device out of band.",
)
@click.option("--device", metavar="NAME", help="The device's name, if the token file does not say it; else a wish.")
@click.option(
    "--key",
    "place",
    type=click.Choice([place.value for place in KeyPlace]),
    help="Keep the key at a persistent handle of the TPM, or in a TSS2 PEM file.  [default: persistent]",
)
@click.option("--handle", metavar="HANDLE", help="The persistent handle.  [default: the first free from 0x81000100]")
@click.option(
    "--algorithm",
    type=click.Choice([algorithm.value for algorithm in KeyAlgorithm]),
    help="Kind and size of the key.  [default: ecc-p256]",
)
@policy_options
@auth_option("an authorization value for the key")
@storage_options
@endorsement_auth_option
@click.option("--no-mirror", is_flag=True, help="Keep no copy of the identity in the TPM's NV memory, and seek none.")
@click.option(
    "--no-tpm",
    type=click.Choice(["fail", "soft"]),
    default="fail",
    show_default=True,
    help="Where there is no TPM: fail, or make a software key, which needs a token and can be copied.",
)
@click.option(
    "--new-identity", is_flag=True, help="On an empty disk, give up the identity that the TPM remembers, and its key."
)
@wait_option
@state_dir_option
@tcti_option
@json_option
def first_boot(  # noqa: PLR0913 - one parameter per option
    *,
    ca_url: str,
    token_file: Path | None,
    evidence: bool,
    trust: Path,
    device: str | None,
    place: str | None,
    handle: str | None,
    algorithm: str | None,
    pcrs: str | None,
    pcr_values: tuple[Path, ...],
    policy_signer: Path | None,
    policy_ref: str | None,
    counter: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    endorsement_auth: str | None,
    no_mirror: bool,
    no_tpm: str,
    new_identity: bool,
    wait: float,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Give this device its identity: a key in the TPM, and a certificate for it from the CA.

    Without a token the device needs no secret: its TPM proves to the CA that it is genuine and that the key lives in
    it. The CA must know the TPM's maker, or this TPM by its EK hash (tpm-mtls keygen show --ek).

    Run it at every boot: on an enrolled device it checks that key and certificate are still there, and changes nothing.
    Interrupted anywhere, the next run finishes it. A lost or exchanged TPM is reported, never enrolled anew.
    After the disk was wiped, the identity comes back from the TPM.

    With --no-tpm=soft a device without any TPM gets a software key instead, by token only. A device that had a TPM
    never gets one: neither here nor at the CA.

    With --pcrs, --pcr-values or --policy-signer the TPM uses the key only while the machine has booted what was agreed
    on. What an operator signed must be in the identity folder before. A key that is there already keeps its policy;
    another one is warned about.
    """
    wish = replace(_wish(place, handle, algorithm), evidence=evidence, copy=not no_mirror, anew=new_identity)
    from tpm_mtls.policy.new_policy import read_wish  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.first_boot_ignored import ignored_policy, remedy  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.first_boot_run import run  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.first_boot_settings import Settings, World  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.patience import Patience  # noqa: PLC0415 - the same

    policy = read_wish(
        pcrs=pcrs, pcr_values=pcr_values, policy_signer=policy_signer, policy_ref=policy_ref, counter=counter
    )
    settings = Settings(
        folder=state_dir,
        ca_url=ca_url,
        token_file=token_file,
        trust=trust,
        device=device,
        wish=wish,
        policy=policy,
        auth=auth,
        tcti=tcti,
        owner_authorization=read_hierarchy_authorization(owner_auth),
        srk_authorization=read_authorization(srk_auth),
        endorsement_authorization=read_hierarchy_authorization(endorsement_auth),
    )
    world = World(patience=Patience(seconds=wait), tell=tell)
    outcome = _run_soft(settings, world) if no_tpm == "soft" else None
    outcome = outcome or run(settings, world)
    record = outcome.record
    ignored = ignored_policy(state_dir, record, policy)
    if ignored is not None:
        signer = [("--policy-signer", str(policy_signer))] if policy_signer is not None else []
        others = (("--pcrs", pcrs), ("--policy-ref", policy_ref), ("--counter", counter))
        given = [(name, value) for name, value in others if value is not None]
        values = [("--pcr-values", str(path)) for path in pcr_values]
        _warn(ignored, remedy(state_dir, record, [*signer, *values, *given]))
    verb = "enrolled" if outcome.changed else "already enrolled"
    verb = "identity restored from the TPM: enrolled" if outcome.restored else verb
    notify_status(f"{verb} as {record.device}")
    data = {
        "changed": outcome.changed,
        "restored": outcome.restored,
        "device": record.device,
        "is_tpm": record.is_tpm,
        "key": record.key,
        "state_dir": str(state_dir),
        "ignored": ignored,
    }
    answer(data, f"{verb} as {record.device}", as_json=as_json)


def _warn(text: str, hint: str) -> None:
    """Not only on a terminal: what a script asks for in vain is to be found in its log."""
    click.echo(f"tpm-mtls: warning: {text}", err=True)
    click.echo(f"tpm-mtls: hint: {hint}", err=True)


def _run_soft(settings: Settings, world: World) -> Outcome | None:
    from tpm_mtls_keygen.soft_first_boot import run as run_soft  # noqa: PLC0415 - imports tpm2-pytss

    return run_soft(settings, world)


def _wish(place: str | None, handle: str | None, algorithm: str | None) -> Wish:
    from tpm_mtls_keygen.first_boot_steps import Wish  # noqa: PLC0415 - imports tpm2-pytss

    if handle is not None and place == KeyPlace.TSS2.value:
        raise UsageError("a key file has no handle", hint="leave out --handle, or use --key persistent")
    wanted = KeyPlace(place) if place else None
    return Wish(
        place=KeyPlace.PERSISTENT if handle is not None else wanted,
        algorithm=KeyAlgorithm(algorithm) if algorithm else None,
        handle=parse_handle(handle) if handle is not None else None,
    )
