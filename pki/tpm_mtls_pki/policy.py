"""Who may have a certificate: the decisions, as pure functions of facts.

What an applicant can show for itself is in `Applicant`. Another kind of proof is another field there, and another
rule in `authorize_enrollment`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls_pki.profiles import DEVICE
from tpm_mtls_pki.records import KEY_COMPROMISE, SUPERSEDED

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from tpm_mtls_pki.records import Record
    from tpm_mtls_pki.tokens import Token


class Reason(enum.Enum):
    """Why a request is refused: for the log and the administrator, not for the applicant."""

    NO_CREDENTIALS = "no-credentials"
    TOKEN_UNKNOWN = "token-unknown"  # noqa: S105 - no password
    TOKEN_OF_ANOTHER = "token-of-another-device"  # noqa: S105 - no password
    TOKEN_REVOKED = "token-revoked"  # noqa: S105 - no password
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 - no password
    TOKEN_USED = "token-used"  # noqa: S105 - no password
    CERTIFICATE_UNKNOWN = "certificate-unknown"
    CERTIFICATE_REVOKED = "certificate-revoked"
    CERTIFICATE_EXPIRED = "certificate-expired"
    NOT_A_DEVICE = "not-a-device"
    KEY_OF_CA = "key-of-the-ca"
    KEY_OF_ANOTHER = "key-of-another"
    KEY_COMPROMISED = "key-compromised"
    EVIDENCE_REFUSED = "evidence-refused"
    TPM_OF_ANOTHER = "tpm-of-another-device"
    DEVICE_OF_ANOTHER = "device-of-another-tpm"
    KEY_MOVED = "key-moved"
    DOWNGRADE = "downgrade"
    DENIED = "denied"
    QUEUE_FULL = "approval-queue-full"


@dataclass(frozen=True)
class Applicant:
    """What an enrollment request shows for itself, as the store knows it.

    Attributes:
        user: HTTP Basic user name, if any was given.
        token: the token given as the password; none if none was given or the store does not know it.
        has_certificate: whether the TLS client showed a certificate.
        current: that certificate's record; none if it is not one of ours.
    """

    user: str | None
    token: Token | None
    has_certificate: bool
    current: Record | None


@dataclass(frozen=True)
class Permit:
    """A certificate may be issued for ``device``, on ``grounds``; ``token`` is to be used up."""

    device: str
    grounds: str
    token: Token | None = None


@dataclass(frozen=True)
class Again:
    """The certificate ``serial`` was issued for this very request before; its answer may have been lost."""

    serial: str


@dataclass(frozen=True)
class Waiting:
    """An administrator has to decide: ``pki approval`` number ``number``."""

    number: int
    device: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Nothing is issued.

    Attributes:
        reason: why.
        device: who asked, as far as that is known.
        check: number of the evidence's check that decided (`tpm_mtls.evidence_checks`); none if it was another rule.
    """

    reason: Reason
    device: str | None = None
    check: int | None = None


Decision: TypeAlias = Permit | Again | Refusal


def authorize_enrollment(applicant: Applicant, *, now: datetime) -> Permit | Refusal:
    """Whether the applicant may have a first certificate (RFC 7030, 3.2.3 and 3.3.2).

    1. With HTTP credentials: the token is known, and it is for the device that uses it; not revoked, not expired. One
       that was used already passes here: `judge_key` decides about it.
    2. Without: as a renewal, if a certificate was shown.
    """
    if applicant.user is None:
        if applicant.has_certificate:
            return authorize_renewal(applicant, now=now)
        return Refusal(Reason.NO_CREDENTIALS)
    token = applicant.token
    if token is None:
        return Refusal(Reason.TOKEN_UNKNOWN, applicant.user)
    fault = _token_fault(token, applicant.user, now)
    return Permit(token.device, f"token {token.id}", token) if fault is None else Refusal(fault, token.device)


def _token_fault(token: Token, user: str, now: datetime) -> Reason | None:
    if token.device != user:
        return Reason.TOKEN_OF_ANOTHER
    if token.revoked_at is not None:
        return Reason.TOKEN_REVOKED
    return Reason.TOKEN_EXPIRED if now >= token.expires_at else None


def authorize_renewal(applicant: Applicant, *, now: datetime) -> Permit | Refusal:
    """Whether the applicant may have its certificate renewed (RFC 7030, 4.2.2); the TLS layer verified the chain.

    The certificate shown is one that this CA issued, to a device, neither revoked nor expired. The new one is for the
    same device.
    """
    record = applicant.current
    if not applicant.has_certificate:
        return Refusal(Reason.NO_CREDENTIALS, applicant.user)
    if record is None:
        return Refusal(Reason.CERTIFICATE_UNKNOWN)
    if record.profile != DEVICE.name:
        return Refusal(Reason.NOT_A_DEVICE, record.subject)
    if record.revoked_at is not None:
        return Refusal(Reason.CERTIFICATE_REVOKED, record.subject)
    if now > record.not_after:
        return Refusal(Reason.CERTIFICATE_EXPIRED, record.subject)
    return Permit(record.subject, f"certificate {record.serial}")


def is_withdrawn(known: Sequence[Record], *, since: datetime) -> bool:
    """Whether the administrator took the device's certificate away, so that its TPM alone gets no other one.

    Its newest one counts; of several in one second, each. A token lets the device in again, and so does releasing its
    TPM, which then enrolls as if it were new.

    Args:
        known: the certificates that were ever issued to that name.
        since: those that are older do not count: they were another TPM's.
    """
    mine = [record for record in known if record.profile == DEVICE.name and record.not_before >= since]
    newest = max((record.not_before for record in mine), default=None)
    return any(
        record.revoked_at is not None and record.reason != SUPERSEDED for record in mine if record.not_before == newest
    )


def judge_key(
    permit: Permit, *, key_digest: str, known: Sequence[Record], ca_keys: Collection[str], now: datetime
) -> Decision:
    """Whether the permit holds for the key that the CSR proves.

    1. The key passes `judge_key_use`.
    2. A token that was used already: for the same key, the same certificate again while it is valid (a device whose
       first boot was interrupted finishes so); for another key, nothing.

    Args:
        permit: what `authorize_enrollment` or `authorize_renewal` returned.
        key_digest: SHA-256 of the key's SPKI, hex.
        known: all certificates that were ever issued for that key.
        ca_keys: digests of the CA's own keys.
        now: the present.
    """
    reason = judge_key_use(DEVICE.name, permit.device, key_digest=key_digest, known=known, ca_keys=ca_keys)
    if reason is not None:
        return Refusal(reason, permit.device)
    token = permit.token
    if token is None or token.used_at is None:
        return permit
    issued = next((record for record in known if record.serial == token.serial), None)
    if issued is None or issued.state(now) != "valid":
        return Refusal(Reason.TOKEN_USED, permit.device)
    return Again(issued.serial)


def judge_key_use(
    profile: str, subject: str, *, key_digest: str, known: Sequence[Record], ca_keys: Collection[str]
) -> Reason | None:
    """Why a key must not be certified for ``subject``; none if it may.

    1. It is not one of the CA's own.
    2. It was never certified for anybody else, and not for another purpose.
    3. No certificate of it was revoked because the key was compromised.
    """
    if key_digest in ca_keys:
        return Reason.KEY_OF_CA
    if any((record.profile, record.subject) != (profile, subject) for record in known):
        return Reason.KEY_OF_ANOTHER
    if any(record.reason == KEY_COMPROMISE for record in known):
        return Reason.KEY_COMPROMISED
    return None
