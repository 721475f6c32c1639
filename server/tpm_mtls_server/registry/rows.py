"""What the registry gives to its readers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls.policy.document import pcr_digest

if TYPE_CHECKING:
    from datetime import datetime

SIGNED_PCRS: Final = range(16)
"""The PCRs that every quote signs."""

Pcrs = dict[str, dict[int, str]]
"""PCR values, hexadecimal, by bank and number."""


class Mode(enum.StrEnum):
    """What the devices of a group are held against."""

    LEARN = "learn"
    """Each against the first quote of its own that passed."""

    APPROVE = "approve"
    """Each against what an operator approved."""

    VALUES = "values"
    """All against values that an operator gave."""

    SIGNED = "signed"
    """All against signed policies."""


class ReferenceKind(enum.StrEnum):
    """What a reference's content is."""

    VALUES = "values"
    """JSON of a `tpm_mtls.policy.states.MachineState`: one state that is accepted."""

    SIGNED = "signed"
    """JSON of a `tpm_mtls.policy.document.SignedPolicy`."""

    SIGNER = "signer"
    """JSON of the `tpm_mtls.policy.document.Signer` whose signed policies count."""


@dataclass(frozen=True)
class StandingVerdict:
    """What the last quote showed.

    Attributes:
        at: when it came.
        trusted: whether it passed.
        check: the number of the check that it failed; none if it failed none.
        pending: whether only an operator's approval lacks.
        reason: what was found.
    """

    at: datetime
    trusted: bool
    check: int | None
    pending: bool
    reason: str


@dataclass(frozen=True)
class DeviceRow:
    """A device.

    Attributes:
        name: its name.
        group: its group.
        first_seen: when it first came.
        last_seen: when it last came, to a minute.
        serial: of the certificate that it showed last, hex.
        not_after: when that certificate expires.
        certificate: that certificate, DER.
        tpm: SHA-256 of its endorsement key's public key, hex; none where no TPM was proved to the CA.
        endorsement_key: that key's TPMT_PUBLIC, as its last genuine quote had it; none if it had none.
        refused_tpm: the TPM that a refused certificate named instead, hex; empty if that named none; none if no
            certificate of its name was refused since.
        refused_at: when that was.
        quarantined_at: when an operator shut it out; none if nobody did.
        quarantine_reason: and why.
        verdict: what its last quote showed; none if it never sent one.
        trusted_at: when a quote of it last passed.
        trusted_until: how long that counts.
        wanted: whether the server wants a quote at the next occasion.
        health_at: when it last reported its health.
        health: that report, a JSON object.
        revision: grows with every change that matters to a quote's verdict.
    """

    name: str
    group: str
    first_seen: datetime
    last_seen: datetime
    serial: str
    not_after: datetime
    certificate: bytes
    tpm: str | None
    endorsement_key: bytes | None
    refused_tpm: str | None
    refused_at: datetime | None
    quarantined_at: datetime | None
    quarantine_reason: str | None
    verdict: StandingVerdict | None
    trusted_at: datetime | None
    trusted_until: datetime | None
    wanted: bool
    health_at: datetime | None
    health: str | None
    revision: int

    def state(self, now: datetime) -> DeviceState:
        """What the server makes of it at ``now``."""
        if self.quarantined_at is not None:
            return DeviceState.QUARANTINED
        if self.verdict is None:
            return DeviceState.UNATTESTED
        if not self.verdict.trusted:
            return DeviceState.PENDING if self.verdict.pending else DeviceState.FAILING
        if self.trusted_until is None or now >= self.trusted_until:
            return DeviceState.OUTDATED
        return DeviceState.ATTESTED


@dataclass(frozen=True)
class QuoteRow:
    """A quote that came; the newest 20 of a device are kept.

    Attributes:
        id: grows.
        at: when it came.
        trusted: whether it passed.
        check: the number of the check that it failed; none if it failed none.
        state: what the server made of the device then.
        reason: what was found.
        differences: how what was booted differs from what was expected.
        attestation_key: Name of the key that it says signed it, hex; empty if that was unreadable.
        attest: the TPMS_ATTEST.
        signature: the TPMT_SIGNATURE.
        pcrs: the values sent along.
    """

    id: int
    at: datetime
    trusted: bool
    check: int | None
    state: str
    reason: str
    differences: tuple[str, ...]
    attestation_key: str
    attest: bytes
    signature: bytes
    pcrs: Pcrs


@dataclass(frozen=True)
class ObservationRow:
    """What the last quote showed that only the policy could refuse.

    Attributes:
        at: when it came.
        pcrs: the PCR values.
        event_log: the event log; none if there was none.
    """

    at: datetime
    pcrs: Pcrs
    event_log: bytes | None

    @property
    def digest(self) -> str:
        """SHA-256 over the signed PCRs, hex: the pcrDigest of the quote. By it an operator says which boot is meant."""
        values = self.pcrs.get("sha256", {})
        return pcr_digest([bytes.fromhex(values[pcr]) for pcr in sorted(values) if pcr in SIGNED_PCRS]).hex()


@dataclass(frozen=True)
class BaselineRow(ObservationRow):
    """What a device is held against.

    Attributes:
        accepted_at: when it was learned or approved.
        accepted_by: by which operator; empty if it was learned.
    """

    accepted_at: datetime
    accepted_by: str


@dataclass(frozen=True)
class GroupRow:
    """A group of devices.

    Attributes:
        name: its name.
        mode: what its devices are held against.
        pcrs: the PCRs that count; empty for all that are signed.
        revision: grows with every change.
    """

    name: str
    mode: Mode
    pcrs: tuple[int, ...]
    revision: int


@dataclass(frozen=True)
class ReferenceRow:
    """A reference that a group's devices are held against.

    Attributes:
        id: its number.
        group: whose.
        kind: what it is.
        digest: SHA-256 of the content, hex.
        content: text; see `ReferenceKind`.
        added_at: when.
        added_by: by which operator.
    """

    id: int
    group: str
    kind: ReferenceKind
    digest: str
    content: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True)
class AttestationKeyRow:
    """An operator's word that an attestation key is a device's.

    Attributes:
        name: the key's Name, hex.
        device: whose it is.
        added_at: when.
        added_by: by which operator.
    """

    name: str
    device: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True)
class AuditRow:
    """One row of the audit log.

    Attributes:
        id: grows.
        at: when.
        event: what happened, such as ``quarantined``.
        subject: to which device; or ``group:NAME``.
        actor: by which operator; empty for the server itself.
        detail: the facts.
    """

    id: int
    at: datetime
    event: str
    subject: str
    actor: str
    detail: dict[str, Any]
