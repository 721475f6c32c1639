"""The trial ``quote``, and ``tpm-mtls tpm pcrs``: a sample of what attestation sends."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tpm_mtls.attestation.messages import NONCE_LENGTH
from tpm_mtls.attestation.quote_checks import BANK, SIGNED_PCRS, verify_quote
from tpm_mtls.attestation.quoting import quote_pcrs
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.evidence_checks import check_attestation_key
from tpm_mtls.pcr.presentation import value_facts, value_rows
from tpm_mtls.tpm.templates import attestation_template
from tpm_mtls.tpm_tools.trial import check_refused, parent_for_trials

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls.attestation.quote_checks import VerifiedQuote
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import LoadedKey, Tpm
    from tpm_mtls.tpm_tools.trial import Trial


@dataclass(frozen=True)
class SampleQuote:
    """A quote that nobody asked for.

    Attributes:
        evidence: as a backend would get it, without logs.
        key: the attestation key.
        is_ours: whether that is the device's; else it was made for this quote and is gone.
        verified: what it says; checks 3 to 6 of attestation passed.
    """

    evidence: QuoteEvidence
    key: PublicArea
    is_ours: bool
    verified: VerifiedQuote

    @property
    def values(self) -> dict[int, bytes]:
        """All PCRs of the bank, the signed ones and the others."""
        return {pcr: bytes.fromhex(value) for pcr, value in self.evidence.pcrs[BANK].items()}


def sample_quote(tpm: Tpm, folder: Path) -> SampleQuote:
    """A quote by the attestation key of ``folder``, or by a new one that is not kept; checked as a backend would.

    Raises:
        EvidenceRefusedError: it does not verify.
        AlgorithmUnsupportedError: the TPM keeps no PCR bank sha256.
        StateError: the PCRs changed meanwhile.
        IdentityError, ForeignKeyError: the folder's attestation key is damaged, or another TPM's.
    """
    key, is_ours = _attestation_key(tpm, folder)
    with key:
        return _quote(tpm, key, is_ours=is_ours)


def try_quoting(tpm: Tpm, trial: Trial, folder: Path) -> SampleQuote:
    """A quote by the attestation key of ``folder``, or by a new one that is not kept.

    Raises:
        as `sample_quote`.
    """
    with trial.proving("the TPM has an attestation key, which signs only what the TPM itself says"):
        key, is_ours = _attestation_key(tpm, folder)
        check_attestation_key(key.public)
    with key, trial.proving("the TPM quoted PCRs 0 to 15; signature, form, nonce and PCR values are right"):
        quote = _quote(tpm, key, is_ours=is_ours)
    evidence, nonce = quote.evidence, quote.evidence.nonce
    with trial.proving("the quote was refused for another nonce, and with another PCR value"):
        other = bytes([nonce[0] ^ 1]) + nonce[1:]
        check_refused(lambda: verify_quote(evidence, other, quote.key), EvidenceRefusedError, "another nonce")
        changed = _with_another_value(evidence)
        check_refused(lambda: verify_quote(changed, nonce, quote.key), EvidenceRefusedError, "another PCR value")
    trial.facts |= quote_facts(quote)
    return quote


def quote_facts(quote: SampleQuote) -> dict[str, Any]:
    """A quote, for scripts."""
    clock = quote.verified.clock
    return {
        "attestation_key": {"name": quote.key.name.hex(), "of_the_device": quote.is_ours},
        "nonce": quote.evidence.nonce.hex(),
        "signed_pcrs": list(SIGNED_PCRS),
        "clock": {
            "milliseconds": clock.milliseconds,
            "reset_count": clock.reset_count,
            "restart_count": clock.restart_count,
            "safe": clock.safe,
        },
    }


def pcr_facts(quote: SampleQuote) -> dict[str, Any]:
    """All PCRs and the quote of some of them, for scripts."""
    return {"pcrs": value_facts({BANK: quote.values}), "quote": quote_facts(quote)}


def pcr_rows(quote: SampleQuote) -> list[tuple[object, ...]]:
    """All PCRs and the quote of some of them, for a person: bank, number, what it is, value, whether it is signed."""
    rows = value_rows({BANK: quote.values})
    return [(*row, "signed" if row[1] in quote.verified.values else "not signed") for row in rows]


def _attestation_key(tpm: Tpm, folder: Path) -> tuple[LoadedKey, bool]:
    record = load_attestation_key(folder)
    if record is not None:
        return record.load(tpm), True
    return tpm.create_child(parent_for_trials(tpm), attestation_template(), None), False


def _quote(tpm: Tpm, key: LoadedKey, *, is_ours: bool) -> SampleQuote:
    evidence, verified = quote_pcrs(tpm, key, secrets.token_bytes(NONCE_LENGTH))
    return SampleQuote(evidence, key.public, is_ours, verified)


def _with_another_value(evidence: QuoteEvidence) -> QuoteEvidence:
    values = dict(evidence.pcrs[BANK])
    values[0] = f"{int(values[0][:2], 16) ^ 1:02x}{values[0][2:]}"
    return msgspec.structs.replace(evidence, pcrs={BANK: values})
