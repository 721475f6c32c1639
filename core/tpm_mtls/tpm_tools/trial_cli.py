"""``tpm-mtls tpm test``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, auth_option, json_option, owner_auth_option, state_dir_option, tcti_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.key_algorithm import KeyAlgorithm

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.tpm import Tpm
    from tpm_mtls.tpm_tools.trial import Trial


@click.group(cls=CommandGroup)
def test() -> None:
    """Try what a TPM is needed for, and say what was proven and how long it took.

    Keys that a test makes are removed from the TPM before it ends; nothing is written to its memory.
    """


@test.command(epilog="Example: tpm-mtls tpm test ecdh")
@tcti_option
@json_option
def ecdh(*, tcti: str | None, as_json: bool) -> None:
    """Key agreement: ECDH_KeyGen and ECDH_ZGen, with the TPM itself and with OpenSSL."""
    from tpm_mtls.tpm_tools.key_agreement import try_key_agreement  # noqa: PLC0415 - imports tpm2-pytss

    _run("ecdh", tcti, try_key_agreement, as_json=as_json)


@test.command("ecdh-aes", epilog="Example: tpm-mtls tpm test ecdh-aes")
@tcti_option
@json_option
def ecdh_aes(*, tcti: str | None, as_json: bool) -> None:
    """A message that only this TPM can read, encrypted by who has only its public key: ECDH, HKDF, AES-256-GCM."""
    from tpm_mtls.tpm_tools.key_agreement import try_encrypted_exchange  # noqa: PLC0415 - imports tpm2-pytss

    _run("ecdh-aes", tcti, try_encrypted_exchange, as_json=as_json)


@test.command(epilog="Example: tpm-mtls tpm test encrypt")
@tcti_option
@json_option
def encrypt(*, tcti: str | None, as_json: bool) -> None:
    """Wrap an AES key under the storage root key, unwrap it, and read what was encrypted with it."""
    from tpm_mtls.tpm_tools.wrapping import try_wrapping  # noqa: PLC0415 - imports tpm2-pytss

    _run("encrypt", tcti, try_wrapping, as_json=as_json)


@test.command(epilog="Example: tpm-mtls tpm test sign --key handle:0x81000100")
@click.option(
    "--key",
    "reference",
    metavar="KEY",
    help="A TSS2 PEM file, or a handle.  [default: the identity folder's key, else one that is not kept]",
)
@click.option(
    "--algorithm",
    type=click.Choice([algorithm.value for algorithm in KeyAlgorithm]),
    default=KeyAlgorithm.ECC_P256.value,
    show_default=True,
    help="Of a key that is not kept.",
)
@auth_option()
@owner_auth_option
@state_dir_option
@tcti_option
@json_option
def sign(
    *,
    reference: str | None,
    algorithm: str,
    auth: str | None,
    owner_auth: str | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """A signature as TLS needs one, verified by OpenSSL."""
    from tpm_mtls.authorization import read_authorization  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm_tools.signing import (  # noqa: PLC0415 - imports tpm2-pytss
        find_key,
        policy_folders,
        try_signing,
    )

    key = find_key(reference, state_dir)
    folders = policy_folders(key, state_dir)
    authorization = read_authorization(auth)

    def trial(tpm: Tpm, trial: Trial) -> None:
        try_signing(tpm, trial, key, authorization=authorization, folders=folders, algorithm=KeyAlgorithm(algorithm))

    _run("sign", tcti, trial, as_json=as_json, owner_auth=owner_auth)


@test.command(epilog="Example: tpm-mtls tpm test quote --out quote")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the quote there, for tpm2_checkquote; never overwrites.",
)
@owner_auth_option
@state_dir_option
@tcti_option
@json_option
def quote(*, out: Path | None, owner_auth: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """A quote of PCRs 0 to 15, checked as a backend checks it.

    By the identity folder's attestation key; where there is none, by one that is made for it and not kept.
    """
    from tpm_mtls.tpm_tools.quote_files import check_absent, write_quote  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.quoting import try_quoting  # noqa: PLC0415 - the same

    if out is not None:
        check_absent(out)

    def trial(tpm: Tpm, trial: Trial) -> None:
        made = try_quoting(tpm, trial, state_dir)
        if out is not None:
            trial.facts["check_with"] = write_quote(made, out)

    _run("quote", tcti, trial, as_json=as_json, owner_auth=owner_auth)


def _run(
    name: str,
    tcti: str | None,
    what: Callable[[Tpm, Trial], None],
    *,
    as_json: bool,
    owner_auth: str | None = None,
) -> None:
    """Runs a trial and says what was proven, also where something else failed then."""
    from tpm_mtls.authorization import read_hierarchy_authorization  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.pcr.presentation import print_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.trial import Trial  # noqa: PLC0415 - the same

    trial = Trial(name)
    failure: TpmMtlsError | None = None
    authorization = read_hierarchy_authorization(owner_auth)
    try:
        with open_tpm(tcti, owner_authorization=authorization) as tpm:
            what(tpm, trial)
    except TpmMtlsError as error:
        failure = error
    if as_json:
        answer(trial.as_json(failure), "", as_json=True)
    elif trial.steps:
        print_rows(("proven", "ms"), [(step.proven, f"{step.milliseconds:.1f}") for step in trial.steps])
        if (command := trial.facts.get("check_with")) is not None:
            click.echo(command)
    if failure is not None:
        raise failure
