"""Predicting PCR values: from where they begin, and what is measured then."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tpm_mtls.errors import UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.pcr.authenticode import program_digests
from tpm_mtls.pcr.logs import read_log
from tpm_mtls.pcr.predict import (
    FILE_LIMIT,
    Measurement,
    check_no_order,
    extended,
    measure,
    parse_file,
    parse_measurement,
    replaced,
    select,
)
from tpm_mtls.policy.states import parse_selection, read_state_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tpm_mtls.pcr.predict import FileMeasurement

_USUAL = "sha256:0,2,4,7"


class Replacements(NamedTuple):
    """Entries of an event log that will be others.

    Attributes:
        digests: ``ENTRY:BANK=HEX``.
        files: ``ENTRY:FILE``.
        programs: ``ENTRY:FILE``, EFI programs.
    """

    digests: Sequence[str] = ()
    files: Sequence[str] = ()
    programs: Sequence[str] = ()


class Start(NamedTuple):
    """From where values begin.

    Attributes:
        pcrs: which PCRs, in the form of `parse_selection`; the usual ones if none.
        event_log: the event log that leads to the values; none for other values.
        replacements: what will be other in it.
        state: the recorded state that has the values; none for other values.
        tcti: where the TPM is that has the values, where neither of both is given.
    """

    pcrs: str | None = None
    event_log: Path | None = None
    replacements: Replacements = Replacements()
    state: Path | None = None
    tcti: str | None = None


def predict_values(
    start: Start, *, extend: Sequence[str] = (), extend_file: Sequence[str] = ()
) -> dict[str, dict[int, bytes]]:
    """The values, by bank and PCR, that begin as ``start`` says and are then extended.

    Args:
        start: from where they begin.
        extend: digests that are measured then, ``PCR:BANK=HEX``.
        extend_file: files that are measured then, ``PCR:FILE``.

    Raises:
        UsageError: an argument is wrong, or they contradict each other.
        EvidenceError, PolicyError: the event log or the state is malformed, or lacks what is to be predicted.
        AlgorithmUnsupportedError: the TPM does not keep a bank.
        PemError, StorageError: a file is oversized, or cannot be read.
    """
    measurements = [parse_measurement(each) for each in extend]
    files = [parse_file(each) for each in extend_file]
    check_no_order(measurements, files)
    values = _first_values(start)
    return extended(values, [*measurements, *(measure(each, values) for each in files)])


def _first_values(start: Start) -> Mapping[str, Mapping[int, bytes]]:
    selection = parse_selection(start.pcrs or _USUAL)
    if start.event_log is not None and start.state is not None:
        raise UsageError("the values begin either with an event log or with a state", hint="leave one of them out")
    if start.event_log is not None:
        log = read_log(start.event_log)
        return select(replaced(log, _replacements(start.replacements, list(selection))), selection)
    if any(start.replacements):
        raise UsageError("which event log's entries are to be replaced?", hint="name it with --event-log")
    if start.state is not None:
        return _of_state(start.state, selection if start.pcrs else None)
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - only here a TPM is needed

    with open_tpm(start.tcti) as tpm:
        return {bank: tpm.pcrs.read(bank, pcrs) for bank, pcrs in selection.items()}


def _replacements(wanted: Replacements, banks: Sequence[str]) -> list[Measurement]:
    found = [parse_measurement(each) for each in wanted.digests]
    found += [measure(parse_file(each), banks) for each in wanted.files]
    found += [_measure_program(parse_file(each), banks) for each in wanted.programs]
    numbers = [each.number for each in found]
    if len(set(numbers)) != len(numbers):
        raise UsageError("an entry is replaced twice", hint="give each entry once")
    return found


def _measure_program(each: FileMeasurement, banks: Sequence[str]) -> Measurement:
    data = read_capped(each.path, limit=FILE_LIMIT)
    return Measurement(each.number, program_digests(data, banks, str(each.path)))


def _of_state(path: Path, selection: Mapping[str, Sequence[int]] | None) -> dict[str, dict[int, bytes]]:
    state = {
        each.bank: {pcr: bytes.fromhex(value) for pcr, value in each.values.items()}
        for each in read_state_file(path).pcrs
    }
    if selection is None:
        return state
    missing = [f"{pcr} ({bank})" for bank in selection for pcr in selection[bank] if pcr not in state.get(bank, {})]
    if missing:
        raise UsageError(f"{path} has no value of PCR {missing[0]}", hint="leave --pcrs out, or record them all")
    return {bank: {pcr: state[bank][pcr] for pcr in pcrs} for bank, pcrs in selection.items()}
