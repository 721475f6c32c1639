"""A quote of what this device booted, and all that its backend needs to judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tpm_mtls.attestation.messages import EVENT_LOG_LIMIT, IMA_LOG_LIMIT, NONCE_LENGTHS, QuoteEvidence
from tpm_mtls.attestation.quoting import quote_pcrs
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.errors import EvidenceError, IdentityError, PemError, StorageError
from tpm_mtls.files import read_capped

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.tpm import Tpm


class Collected(NamedTuple):
    """What `collect` found.

    Attributes:
        evidence: for the backend; checked here already.
        missing: why a log is not in it, for people: one sentence for each log that was asked for and is not.
    """

    evidence: QuoteEvidence
    missing: tuple[str, ...]


def collect(tpm: Tpm, folder: Path, nonce: bytes, event_log: Path | None, ima_log: Path | None) -> Collected:
    """The quote that answers ``nonce``, the PCR values and the logs (six commands; nothing stays in the TPM).

    The quote is checked as the backend will (checks 3 to 6). The logs are read after it. One that is not there, or may
    not be read, is left out, and `Collected.missing` says why: whether a quote will do without it, the backend decides.

    Args:
        tpm: the open TPM.
        folder: the identity folder, for ``attestation.key.json``.
        nonce: the backend's; 12 to 32 bytes.
        event_log: the firmware's event log; none to send none.
        ima_log: IMA's binary list; none to send none.

    Raises:
        EvidenceError: the nonce has another length.
        EvidenceRefusedError: the backend would refuse the quote: something between here and the TPM lies.
        IdentityError: there is no attestation key, or its record is damaged.
        ForeignKeyError: the attestation key is another TPM's, or this one was cleared.
        AlgorithmUnsupportedError: the TPM keeps no PCR bank sha256.
        StateError: the PCRs and the quote of them do not meet: `tpm_mtls.attestation.quoting.quote_pcrs`.
        TpmRefusedError, TpmUnavailableError: the TPM does not do it.
        StorageError: the record cannot be read.
    """
    if len(nonce) not in NONCE_LENGTHS:
        raise EvidenceError(
            f"a nonce of {len(nonce)} bytes is not answered: it must have {NONCE_LENGTHS[0]} to {NONCE_LENGTHS[-1]}",
            hint="is that our backend? a quote for a short nonce could be kept and shown again",
        )
    key = load_attestation_key(folder)
    if key is None:
        raise IdentityError(
            f"there is no attestation key in {folder}", hint="enroll with evidence: tpm-mtls keygen first-boot"
        )
    with key.load(tpm) as loaded:
        evidence, _ = quote_pcrs(tpm, loaded, nonce, certificate=key.certificate)
    events, no_events = _log(event_log, EVENT_LOG_LIMIT, "event log")
    files, no_files = _log(ima_log, IMA_LOG_LIMIT, "IMA list")
    evidence = msgspec.structs.replace(evidence, endorsement_key=key.ek_public, event_log=events, ima_log=files)
    return Collected(evidence, tuple(filter(None, (no_events, no_files))))


def _log(path: Path | None, limit: int, what: str) -> tuple[bytes | None, str]:
    """The log in ``path``; or why there is none."""
    if path is None:
        return None, ""
    try:
        return read_capped(path, limit=limit), ""
    except (PemError, StorageError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None, f"there is no {what} at {path}"
        return None, f"the {what} is not sent: {error}"
