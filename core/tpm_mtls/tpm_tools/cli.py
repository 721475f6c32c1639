"""``tpm-mtls tpm``."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option, owner_auth_option, state_dir_option, tcti_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.files import PUBLIC_FILE, write_atomic
from tpm_mtls.tpm_tools.trial_cli import test


@click.group(cls=CommandGroup)
def tpm() -> None:
    """What a TPM is, what it can do, and whether it does it.

    Nothing here changes the TPM: what a command makes there, it removes before it ends.
    """


tpm.add_command(test)


@tpm.command(epilog="Example: tpm-mtls tpm info")
@tcti_option
@json_option
def info(*, tcti: str | None, as_json: bool) -> None:
    """Say which TPM it is, how it is, and what its firmware is known for."""
    from tpm_mtls.pcr.presentation import print_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.description import describe, info_rows  # noqa: PLC0415 - the same

    with open_tpm(tcti) as opened:
        facts = describe(opened)
    if as_json:
        answer(facts, "", as_json=True)
    else:
        print_rows(("what", "value"), list(info_rows(facts)))


@tpm.command(epilog="Example: tpm-mtls tpm capabilities")
@tcti_option
@json_option
def capabilities(*, tcti: str | None, as_json: bool) -> None:
    """List what it can do: algorithms, curves, commands, PCR banks, limits, and what is in it."""
    from tpm_mtls.pcr.presentation import print_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.description import capability_rows, list_capabilities  # noqa: PLC0415 - the same

    with open_tpm(tcti) as opened:
        facts = list_capabilities(opened)
    if as_json:
        answer(facts, "", as_json=True)
    else:
        print_rows(("kind", "name", "value"), list(capability_rows(facts)))


@tpm.command(epilog="Example: tpm-mtls tpm pcrs")
@owner_auth_option
@state_dir_option
@tcti_option
@json_option
def pcrs(*, owner_auth: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Read all PCRs of the bank sha256, and a sample quote of PCRs 0 to 15, checked as a backend checks it.

    The quote is by the identity folder's attestation key; where there is none, by one that is made for it and not kept.
    """
    from tpm_mtls.authorization import read_hierarchy_authorization  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.pcr.presentation import print_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.quoting import pcr_facts, pcr_rows, sample_quote  # noqa: PLC0415 - the same

    with open_tpm(tcti, owner_authorization=read_hierarchy_authorization(owner_auth)) as opened:
        quote = sample_quote(opened, state_dir)
    if as_json:
        answer(pcr_facts(quote), "", as_json=True)
    else:
        print_rows(("bank", "PCR", "what", "value", "in the quote"), pcr_rows(quote))


@tpm.command("save-info", epilog="Example: tpm-mtls tpm save-info /tmp/tpm.json")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@owner_auth_option
@state_dir_option
@tcti_option
@json_option
def save_info(*, file: Path, owner_auth: str | None, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Write what info, capabilities and pcrs say into FILE, as JSON: for a diagnostic bundle.

    There is no secret in it. It names this TPM for good: by the public keys that identify it. Where one of the three
    fails, the file says why.
    """
    import msgspec  # noqa: PLC0415 - `--help` stays quick

    from tpm_mtls.authorization import read_hierarchy_authorization  # noqa: PLC0415 - the same
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm_tools.description import collect, describe, list_capabilities  # noqa: PLC0415 - the same
    from tpm_mtls.tpm_tools.quoting import pcr_facts, sample_quote  # noqa: PLC0415 - the same

    with open_tpm(tcti, owner_authorization=read_hierarchy_authorization(owner_auth)) as opened:
        facts, failed = collect(
            {
                "info": lambda: describe(opened),
                "capabilities": lambda: list_capabilities(opened),
                "pcrs": lambda: pcr_facts(sample_quote(opened, state_dir)),
            }
        )
    write_atomic(file, msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n", mode=PUBLIC_FILE)
    text = f"{file} (failed: {', '.join(failed)}; it says why)" if failed else str(file)
    answer({"file": str(file), "failed": failed}, text, as_json=as_json)
