"""The messages of attestation: JSON over HTTPS, byte strings in base64 (RFC 4648, 4), no unknown members.

    device                                  backend
      POST /attestation/nonce     ------->
                                  <-------  Challenge
      POST /attestation           ------->
        QuoteEvidence             <-------  Verdict
      POST /health                ------->
        a health report           <-------  HealthAnswer

docs/protocol.md describes them for other programs. Imported by programs that read no TPM data: keep it light.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from tpm_mtls.errors import EvidenceError

FORMAT: Final = 1

NONCE_LENGTHS: Final = range(12, 33)
"""Bytes that a device accepts as a nonce. More than 64 no TPM takes; fewer than 12 repeat within a fleet's life."""

NONCE_LENGTH: Final = 32
"""Bytes of the nonces that our backend gives."""

EVIDENCE_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a `QuoteEvidence` as JSON: both logs at their limits take 6.7 MiB in base64."""

EVENT_LOG_LIMIT: Final = 1024 * 1024
"""Bytes of an event log: `tpm_mtls.event_log.LOG_LIMIT`, which this module must not import."""

IMA_LOG_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of an IMA list: some 40,000 entries. A distribution's policy tcb measures a few thousand files."""

ANSWER_LIMIT: Final = 256 * 1024
"""Bytes of every other message: the longest verdict names every entry of two long event logs."""

CHECKS: Final = {
    1: "nonce",
    2: "attestation key",
    3: "signature",
    4: "a TPM's quote",
    5: "answers the nonce",
    6: "PCR values",
    7: "clock",
    8: "logs",
    9: "policy",
}
"""What each of the checks is about that a quote has to pass: `Verdict.check`."""

_ATTEST_LIMIT: Final = 1024  # tpm_mtls.structures.attestation.ATTEST_LIMIT
_SIGNATURE_LIMIT: Final = 1024  # tpm_mtls.structures.signature.SIGNATURE_LIMIT
_PUBLIC_LIMIT: Final = 1024  # tpm_mtls.structures.public_area.PUBLIC_LIMIT
_CERTIFICATE_LIMIT: Final = 4 * 1024  # tpm_mtls.freshness.CERTIFICATE_LIMIT
_LIFETIME_LIMIT: Final = 24 * 3600
_HINT: Final = "docs/protocol.md describes the messages; is the other side's tpm-mtls another version?"

Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_LENGTHS[0], max_length=NONCE_LENGTHS[-1])]
Bank = Literal["sha1", "sha256", "sha384", "sha512"]
Number = Annotated[int, msgspec.Meta(ge=0, le=23, description="a PCR's number")]
Value = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){20,64}\Z", description="a PCR's value, hexadecimal")]
Text = Annotated[str, msgspec.Meta(max_length=2048, description="for people; show it only with controls escaped")]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them have in common."""


class Challenge(_Message, frozen=True, kw_only=True):
    """The backend's answer to a request for a nonce.

    Attributes:
        nonce: what the quote must hold as its extraData; 12 to 32 bytes.
        lifetime: seconds for which it is good, once.
    """

    nonce: Nonce
    lifetime: Annotated[int, msgspec.Meta(ge=1, le=_LIFETIME_LIMIT)]


class QuoteEvidence(_Message, frozen=True, kw_only=True):
    """What a device shows of what it booted; nothing of it is verified.

    Attributes:
        format: version of this structure.
        nonce: which challenge it answers.
        attest: the TPMS_ATTEST of TPM2_Quote.
        signature: by the attestation key, a TPMT_SIGNATURE.
        attestation_key: its TPMT_PUBLIC.
        certificate: its certificate (DER), if it has one.
        endorsement_key: the TPMT_PUBLIC of the endorsement key that vouched for it, if it is known.
        pcrs: PCR values, hexadecimal, by bank and number. Of those 0 to 15 of sha256 are signed, the others are not.
        event_log: the firmware's event log (``binary_bios_measurements``), if there is one.
        ima_log: the kernel's list of measured files (``binary_runtime_measurements``), if there is one. Read after the
            quote, so it may have entries more than PCR 10 had then.
    """

    format: Literal[1] = FORMAT
    nonce: Nonce
    attest: Annotated[bytes, msgspec.Meta(max_length=_ATTEST_LIMIT)]
    signature: Annotated[bytes, msgspec.Meta(max_length=_SIGNATURE_LIMIT)]
    attestation_key: Annotated[bytes, msgspec.Meta(max_length=_PUBLIC_LIMIT)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=_CERTIFICATE_LIMIT)] | None = None
    endorsement_key: Annotated[bytes, msgspec.Meta(max_length=_PUBLIC_LIMIT)] | None = None
    pcrs: dict[Bank, dict[Number, Value]]
    event_log: Annotated[bytes, msgspec.Meta(max_length=EVENT_LOG_LIMIT)] | None = None
    ima_log: Annotated[bytes, msgspec.Meta(max_length=IMA_LOG_LIMIT)] | None = None


class DeviceState(enum.StrEnum):
    """What a backend makes of a device."""

    UNATTESTED = "unattested"
    """It never showed a quote that passed."""

    ATTESTED = "attested"
    """Its last quote passed, and that is not too long ago."""

    PENDING = "pending"
    """Its quote is genuine; an operator must approve what it booted."""

    FAILING = "failing"
    """Its last quote was refused."""

    OUTDATED = "outdated"
    """Its last quote passed, too long ago."""

    QUARANTINED = "quarantined"
    """An operator has shut it out."""


class Verdict(_Message, frozen=True, kw_only=True):
    """The backend's answer to a `QuoteEvidence`.

    Attributes:
        trusted: whether all checks passed.
        check: the number of the check that failed, 1 to 9; none if none did.
        reason: what was found, and what to do about it.
        differences: how what was booted differs from what was expected, most telling first.
        state: what the backend makes of the device now.
    """

    trusted: bool
    check: Annotated[int, msgspec.Meta(ge=1, le=9)] | None = None
    reason: Text = ""
    differences: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1024)] = ()
    state: DeviceState


class HealthAnswer(_Message, frozen=True, kw_only=True):
    """The backend's answer to a health report.

    Attributes:
        attest: whether it wants a quote now.
    """

    attest: bool


_M = TypeVar("_M", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    """``message`` as JSON, the body of a request or an answer."""
    return msgspec.json.encode(message)


def decode(body: bytes, kind: type[_M], *, limit: int = ANSWER_LIMIT) -> _M:
    """The message of ``kind`` in ``body``; nothing that it says is verified.

    Args:
        body: JSON.
        kind: `Challenge`, `Verdict`, `HealthAnswer`; `QuoteEvidence` has `decode_evidence`.
        limit: bytes of ``body`` at the most.

    Raises:
        EvidenceError: it is larger, no JSON object of that kind, has unknown members, or one out of its bounds.
    """
    if len(body) > limit:
        raise EvidenceError(f"a {kind.__name__} of more than {limit} bytes", hint=_HINT)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EvidenceError(f"malformed {kind.__name__}: {_lower(str(error))}", hint=_HINT) from error


def decode_evidence(body: bytes) -> QuoteEvidence:
    """The quote and what goes with it, in the body of a request; nothing of it is verified.

    Raises:
        EvidenceError: as `decode`, with `EVIDENCE_LIMIT`.
    """
    return decode(body, QuoteEvidence, limit=EVIDENCE_LIMIT)


def pcr_values(evidence: QuoteEvidence) -> dict[str, dict[int, bytes]]:
    """The PCR values of ``evidence``, signed and unsigned ones alike, by bank and number."""
    return {bank: {pcr: bytes.fromhex(value) for pcr, value in of.items()} for bank, of in evidence.pcrs.items()}


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
