"""States of a machine, as its PCRs show them: recorded on a device, and made into policies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from tpm_mtls.errors import PolicyError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.policy.document import (
    BANKS,
    BRANCHES,
    FORMAT,
    LIMIT,
    PCRS,
    PolicyOr,
    PolicyPcr,
    Text,
    check_assertions,
    pcr_digest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.policy.document import Assertion

_SELECTION: Final = re.compile(r"(sha1|sha256|sha384|sha512):([0-9]{1,2}(?:,[0-9]{1,2})*)")


class PcrReader(Protocol):
    """Something that tells PCR values: a TPM (`tpm_mtls.tpm.pcrs`), which whoever only parses states need not have."""

    def read(self, bank: str, pcrs: Iterable[int]) -> Mapping[int, bytes]:
        """The values of ``pcrs`` in ``bank``, by number."""


class MachineState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``tpm-mtls policy record`` writes: the values of PCRs, in the form of a policy's assertions.

    Attributes:
        format: version of this structure.
        description: for people.
        pcrs: the values, one assertion for each bank.
    """

    format: int = FORMAT
    description: Text = ""
    pcrs: tuple[PolicyPcr, ...]


def parse_selection(text: str) -> dict[str, tuple[int, ...]]:
    """The PCRs that ``text`` names, by bank: ``sha256:0,2,7``, or several joined with ``+`` (as tpm2-tools take them).

    Raises:
        UsageError: it names none, an unknown bank, or numbers beyond 23.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split("+"):
        match = _SELECTION.fullmatch(part)
        pcrs = sorted({int(number) for number in match[2].split(",")}) if match else []
        if match is None or match[1] in found or not set(pcrs) <= set(PCRS):
            raise UsageError(
                f"not a selection of PCRs: {text[:60]!r}",
                hint=f"like sha256:0,2,4,7 (banks: {', '.join(BANKS)}; PCRs 0 to {PCRS[-1]})",
            )
        found[match[1]] = tuple(pcrs)
    return found


def read_state(pcrs: PcrReader, selection: str, *, now: datetime, description: str = "") -> MachineState:
    """The present values of the PCRs that ``selection`` names; one command for each eight of a bank.

    Raises:
        UsageError: ``selection`` is none.
        AlgorithmUnsupportedError: the TPM does not keep a bank.
    """
    values = {bank: pcrs.read(bank, numbers) for bank, numbers in parse_selection(selection).items()}
    return state_of(values, now=now, description=description)


def state_of(values: Mapping[str, Mapping[int, bytes]], *, now: datetime, description: str = "") -> MachineState:
    """The state in which the PCRs have ``values``, by bank and number."""
    recorded = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return MachineState(
        description=description,
        pcrs=tuple(
            PolicyPcr(
                bank=bank,
                pcrs=tuple(sorted(found)),
                digest=pcr_digest([found[pcr] for pcr in sorted(found)]).hex(),
                values={pcr: found[pcr].hex() for pcr in sorted(found)},
                recorded=recorded,
            )
            for bank, found in values.items()
        ),
    )


def read_state_file(path: Path) -> MachineState:
    """The state in the file ``path``.

    Raises:
        PolicyError: it is none.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    return parse_state(read_capped(path, limit=LIMIT), str(path))


def parse_state(data: bytes, name: str) -> MachineState:
    """The state in ``data``; ``name`` says where it came from, for the errors.

    Raises:
        PolicyError: malformed or of another format.
    """
    hint = "record it again: tpm-mtls policy record"
    try:
        state = msgspec.json.decode(data, type=MachineState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{name} is no recorded state of a machine: {error}", hint=hint) from error
    if state.format != FORMAT:
        raise PolicyError(f"{name} has format {state.format}, expected {FORMAT}", hint="use the tpm-mtls that made it")
    check_assertions(state.pcrs, name)
    return state


def encode_state(state: MachineState) -> bytes:
    """The file for ``state``."""
    return msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"


def any_of(states: Sequence[MachineState]) -> tuple[Assertion, ...]:
    """The policy that the machine is in one of ``states``, the same ones counted once.

    Raises:
        UsageError: there is none, or more than PolicyOR takes.
    """
    branches = list({tuple(pcr.digest for pcr in state.pcrs): state.pcrs for state in states}.values())
    if len(branches) == 1:
        return branches[0]
    if len(branches) not in BRANCHES:
        raise UsageError(
            f"{len(branches)} states of the machine are given", hint=f"give 1 to {BRANCHES[-1]}: --pcrs, --pcr-values"
        )
    return (PolicyOr(branches=tuple(branches)),)
