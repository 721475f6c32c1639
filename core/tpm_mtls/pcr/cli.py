"""``tpm-mtls pcr``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option, state_dir_option, tcti_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import PolicyRefusedError

_NOT_SATISFIED = 0x99D  # TPM_RC_POLICY_FAIL for the first session: what the TPM would answer to who relies on it
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=CommandGroup)
def pcr() -> None:
    """Platform configuration registers: what they are, what changed them, what they will be.

    What a machine boots is measured into them. The event log of the boot says what was measured; it is the kernel's
    file /sys/kernel/security/tpm0/binary_bios_measurements, which only root may read.
    """


@pcr.command(epilog="Example: tpm-mtls pcr read --pcrs sha256:0,2,4,7")
@click.option("--pcrs", metavar="BANK:N,…", help="Which PCRs; join banks with +.  [default: all]")
@tcti_option
@json_option
def read(*, pcrs: str | None, tcti: str | None, as_json: bool) -> None:
    """Read the present values."""
    from tpm_mtls.pcr.presentation import print_rows, value_facts, value_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.policy.document import PCRS  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.policy.states import parse_selection  # noqa: PLC0415 - the same
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss

    selection = parse_selection(pcrs) if pcrs is not None else None
    with open_tpm(tcti) as tpm:
        selection = selection or dict.fromkeys(tpm.pcrs.banks(), tuple(PCRS))
        values = {bank: tpm.pcrs.read(bank, numbers) for bank, numbers in selection.items()}
    if as_json:
        answer({"pcrs": value_facts(values)}, "", as_json=True)
    else:
        print_rows(("bank", "PCR", "what", "value"), value_rows(values))


@pcr.command(epilog="Example: tpm-mtls pcr log --pcrs 4,7,9")
@click.argument("file", type=_FILE, required=False)
@click.option("--pcrs", metavar="N,…", help="Only entries of these PCRs.")
@json_option
def log(*, file: Path | None, pcrs: str | None, as_json: bool) -> None:
    """Say what an event log says: the present boot's, or FILE. No TPM is asked, and nothing verified.

    The fourth column says for how much of the words the measured digest stands: all, the content but not its name,
    or nothing.
    """
    from tpm_mtls.event_log import replay  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.pcr.logs import KERNEL_LOG, read_log  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.pcr.presentation import entry_row, log_facts, print_rows  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.policy.states import parse_selection  # noqa: PLC0415 - imports msgspec

    wanted = parse_selection(f"sha256:{pcrs}")["sha256"] if pcrs is not None else None
    path = file or KERNEL_LOG
    found = read_log(path)
    entries = [each for each in found.entries if wanted is None or each.pcr in wanted]
    if as_json:
        answer(log_facts(str(path), found, entries, replay(found)), "", as_json=True)
    else:
        print_rows(("entry", "PCR", "part", "measured", "what"), [entry_row(each) for each in entries])


@pcr.command(epilog="Example: tpm-mtls pcr diff state.json --log-before before-update.log")
@click.argument("what", required=False, metavar="[STATE|POLICY|SEALED|KEY]")
@click.option("--log-before", type=_FILE, help="The event log of the boot that the values are from, if it was kept.")
@click.option("--event-log", type=_FILE, help="The event log of this boot.  [default: the kernel's, if there is one]")
@state_dir_option
@tcti_option
@json_option
def diff(
    *,
    what: str | None,
    log_before: Path | None,
    event_log: Path | None,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Say which PCRs have other values than once, and which measurements explain it; exit with 4 if any has.

    The values are those of a recorded or predicted state (policy record, pcr predict), of a policy file, of what
    tpm-mtls seal wrote, or of a key's policy; by default those to which --log-before leads, else those of the identity
    folder's key.
    """
    from tpm_mtls.pcr.difference import find_differences  # noqa: PLC0415 - imports tpm2-pytss

    found = find_differences(what, log_before=log_before, event_log=event_log, state_dir=state_dir, tcti=tcti)
    answer(found.facts(), found.text(), as_json=as_json)
    if not found.same:
        raise PolicyRefusedError(
            f"the PCRs are not as in {found.name}",
            hint=found.remedy,
            rc=_NOT_SATISFIED,
        )


@pcr.command(epilog="\b\nExample: tpm-mtls pcr predict --event-log update.log --pcrs sha256:4,7 --out update.json")
@click.option("--pcrs", metavar="BANK:N,…", help="Which PCRs.  [default: those of --pcr-values, else sha256:0,2,4,7]")
@click.option("--event-log", type=_FILE, help="Begin with the values to which this event log leads.")
@click.option(
    "--replace", multiple=True, metavar="ENTRY:BANK=HEX", help="But with this digest in that entry; may be repeated."
)
@click.option("--replace-file", multiple=True, metavar="ENTRY:FILE", help="But with this file measured in that entry.")
@click.option(
    "--replace-program", multiple=True, metavar="ENTRY:FILE", help="But with this EFI program started in that entry."
)
@click.option("--pcr-values", type=_FILE, help="Begin with the values of a recorded state (policy record).")
@click.option(
    "--extend", multiple=True, metavar="PCR:BANK=HEX", help="Then extend a PCR, as tpm2_pcrextend; may be repeated."
)
@click.option("--extend-file", multiple=True, metavar="PCR:FILE", help="Then measure a file's content into a PCR.")
@click.option("--description", default="", metavar="TEXT", help="What the state will be, for people.")
@click.option("--out", type=_FILE, metavar="FILE", help="Write the state, for policy sign --pcr-values and the like.")
@tcti_option
@json_option
def predict(  # noqa: PLR0913 - one parameter per option
    *,
    pcrs: str | None,
    event_log: Path | None,
    replace: tuple[str, ...],
    replace_file: tuple[str, ...],
    replace_program: tuple[str, ...],
    pcr_values: Path | None,
    extend: tuple[str, ...],
    extend_file: tuple[str, ...],
    description: str,
    out: Path | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Say which values PCRs will have, for an operator to sign before it is booted.

    They begin with an event log's, with those of a recorded state, or with this machine's present ones; only for these
    a TPM is asked.
    """
    from tpm_mtls.files import PUBLIC_FILE, write_atomic  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.pcr.prediction import Replacements, Start, predict_values  # noqa: PLC0415 - imports msgspec
    from tpm_mtls.pcr.presentation import print_rows, value_facts, value_rows  # noqa: PLC0415 - the same
    from tpm_mtls.policy.states import encode_state, state_of  # noqa: PLC0415 - the same

    start = Start(pcrs, event_log, Replacements(replace, replace_file, replace_program), pcr_values, tcti)
    values = predict_values(start, extend=extend, extend_file=extend_file)
    if out is not None:
        state = state_of(values, now=datetime.now(UTC), description=description)
        write_atomic(out, encode_state(state), mode=PUBLIC_FILE, replace=False)
    if as_json:
        answer({"state": str(out) if out else None, "pcrs": value_facts(values)}, "", as_json=True)
    else:
        print_rows(("bank", "PCR", "what", "value"), value_rows(values))
