"""The nine checks of a quote, in their order; nothing here has an effect, and nothing here needs a TPM.

1. nonce                `tpm_mtls_server.attestation.nonce`
2. attestation key      `tpm_mtls_server.attestation.attestation_key`
3. signature            `tpm_mtls.attestation.quote_checks`
4. a TPM's quote        the same
5. answers the nonce    the same
6. PCR values           the same
7. clock                `tpm_mtls_server.attestation.clock`
8. logs                 `tpm_mtls_server.attestation.logs`
9. policy               `tpm_mtls_server.attestation.policy`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.messages import DeviceState, Verdict
from tpm_mtls.attestation.quote_checks import verify_quote
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls_server.attestation import explanation
from tpm_mtls_server.attestation.attestation_key import Owner, check_endorsement_key, check_key
from tpm_mtls_server.attestation.boot_state import BootState
from tpm_mtls_server.attestation.clock import ClockState, check_clock, firmware_changed
from tpm_mtls_server.attestation.logs import check_logs
from tpm_mtls_server.attestation.nonce import check_nonce
from tpm_mtls_server.attestation.policy import Signed, Values, judge_policy
from tpm_mtls_server.attestation.words import named_pcrs

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls.attestation.quote_checks import VerifiedQuote
    from tpm_mtls.device_identity import TpmIdentity
    from tpm_mtls.pcr.explain import Explanation
    from tpm_mtls.structures import PublicArea
    from tpm_mtls_server.attestation.attestation_key import AttestationTrust
    from tpm_mtls_server.attestation.logs import Logs
    from tpm_mtls_server.attestation.nonce import IssuedNonce
    from tpm_mtls_server.attestation.policy import Finding, Policy
    from tpm_mtls_server.revocation import RevocationLists

_REASON_LIMIT: Final = 2000  # characters; a verdict's reason has at most 2048


@dataclass(frozen=True)
class Facts:
    """What the backend knows, and the evidence is held against.

    Attributes:
        device: the device's name, as its TLS certificate says.
        tpm: the TPM in that certificate; none if it names none.
        nonce: what the registry knows about the nonce that the evidence names; none if nothing.
        trust: whose certificates of attestation keys count.
        revocation: the CRLs; none where there is none that can be read.
        policy: what it must have booted.
        enrolled: Names of the attestation keys that operators enrolled this device with.
        clock: the TPM's clock at the last genuine quote of this device; none if there was none.
        baseline: what it once booted and was learned or approved; none if nothing.
    """

    device: str
    tpm: TpmIdentity | None
    nonce: IssuedNonce | None
    trust: AttestationTrust
    revocation: RevocationLists | None
    policy: Policy
    enrolled: frozenset[bytes] = frozenset()
    clock: ClockState | None = None
    baseline: BootState | None = None


@dataclass(frozen=True)
class Judgement:
    """What the checks found, and what the registry is to keep of it.

    Attributes:
        trusted: whether all of them passed.
        check: number of the one that failed, 1 to 9; none if none did.
        reason: what was found.
        hint: what to do about it; empty where there is nothing to do.
        pending: whether it is refused (by check 9) only because an operator has approved nothing yet.
        explanations: the PCRs that differ from what they should be, and why, the most telling first.
        notes: what is worth knowing and no reason to refuse.
        clock: to be kept as the device's clock: the quote is genuine, checks 1 to 7 passed. None: keep the old one.
        seen: what it booted, which an operator may approve: checks 1 to 8 passed. None: it showed nothing.
        learned: whether ``seen`` is to become the baseline.
    """

    trusted: bool
    check: int | None
    reason: str
    hint: str = ""
    pending: bool = False
    explanations: tuple[Explanation, ...] = ()
    notes: tuple[str, ...] = ()
    clock: ClockState | None = None
    seen: BootState | None = None
    learned: bool = False

    @property
    def text(self) -> str:
        """Reason, notes and hint in one line."""
        return "; ".join(part for part in (self.reason, *self.notes, self.hint) if part)[:_REASON_LIMIT]

    @property
    def differences(self) -> tuple[str, ...]:
        """The explanations for people, a line for each thing."""
        return explanation.lines(self.explanations)

    def verdict(self, state: DeviceState | None = None) -> Verdict:
        """The answer to the device, with what the backend now makes of it; by this quote alone if not given."""
        own = DeviceState.ATTESTED if self.trusted else DeviceState.PENDING if self.pending else DeviceState.FAILING
        return Verdict(
            trusted=self.trusted,
            check=self.check,
            reason=self.text,
            differences=self.differences,
            state=own if state is None else state,
        )


def verify(evidence: QuoteEvidence, facts: Facts, *, now: datetime) -> Judgement:
    """Makes the nine checks of ``evidence``; the first that fails is the judgement's.

    1. The nonce was given to this device by this backend, lately, and is used for the first time.
    2. The key that signed is an attestation key of this device's TPM; so is the endorsement key sent along, if one is.
    3. It signed what was sent,
    4. which is a quote that a TPM wrote,
    5. for this nonce,
    6. and the PCR values are those that were quoted, 0 to 15 of sha256 among them.
    7. The TPM's clock and counters went forward since the last quote.
    8. The logs lead to the PCR values.
    9. The policy holds: the machine booted what it should.

    Never raises for evidence that is refused. The caller must have decoded it with
    `tpm_mtls.attestation.messages.decode_evidence`, which limits its sizes, and must use up the nonce before, whatever
    comes out here. Takes some 0.3 ms without logs; with the largest ones, seconds: not for an event loop.

    Args:
        evidence: from the device.
        facts: what is known about it.
        now: the time.
    """
    clock: ClockState | None = None
    try:
        check_nonce(evidence.nonce, facts.nonce, device=facts.device, now=now)  # 1
        key = _check_key(evidence, facts, now)  # 2
        quote = verify_quote(evidence, evidence.nonce, key)  # 3, 4, 5, 6
        found = ClockState.of(quote.attest, key)
        check_clock(facts.clock, found)  # 7
        clock = found
        logs = check_logs(evidence.event_log, evidence.ima_log, quote.pcrs)  # 8
    except EvidenceRefusedError as error:
        return Judgement(trusted=False, check=error.check, reason=str(error), hint=error.hint, clock=clock)
    return _judge_boot(evidence, facts, quote, clock, logs, now)  # 9


def _check_key(evidence: QuoteEvidence, facts: Facts, now: datetime) -> PublicArea:
    owner = Owner(facts.device, facts.tpm, facts.enrolled)
    key = check_key(
        evidence.attestation_key,
        evidence.certificate,
        owner=owner,
        trust=facts.trust,
        revocation=facts.revocation,
        now=now,
    )
    check_endorsement_key(evidence.endorsement_key, owner=owner, trust=facts.trust)
    return key


def _judge_boot(
    evidence: QuoteEvidence, facts: Facts, quote: VerifiedQuote, clock: ClockState, logs: Logs, now: datetime
) -> Judgement:
    finding = judge_policy(facts.policy, quote.pcrs, facts.baseline, ima=logs.ima)
    explanations = explanation.explain_differences(finding.differs, logs.event_log, facts.baseline)
    notes = list(logs.notes)
    if firmware_changed(facts.clock, clock):
        notes.append("the TPM's firmware is another one than at its last quote")
    return Judgement(
        trusted=finding.holds,
        check=None if finding.holds else 9,
        reason=_reason(finding, explanations),
        hint=_hint(finding, facts),
        pending=finding.waits,
        explanations=explanations,
        notes=tuple(notes),
        clock=clock,
        seen=BootState(quote.pcrs, evidence.event_log if logs.event_log is not None else None, now),
        learned=finding.learns,
    )


def _reason(finding: Finding, explanations: tuple[Explanation, ...]) -> str:
    if finding.waits:
        return "the quote is genuine, but no operator has approved what this device boots"
    if finding.learns:
        return "the quote is genuine: what this device booted is its baseline from now on"
    if finding.holds:
        return f"this device booted what it should: as {finding.standard}"
    others = [str(each) for each in finding.obstacles if each not in finding.differs]
    parts = []
    if finding.differs:
        which = named_pcrs([each.pcr for each in finding.differs])
        parts.append(f"{which} {'differ' if len(finding.differs) > 1 else 'differs'} from {finding.standard}")
        parts.append(f"what differs: {', '.join(explanation.components(explanations))}")
    return "; ".join(parts + others)


def _hint(finding: Finding, facts: Facts) -> str:
    if finding.holds:
        return ""
    if finding.waits:
        return f"look at it, then: tpm-mtls server device approve {facts.device}"
    by_group = isinstance(facts.policy, Values | Signed)
    how = "tpm-mtls server group set" if by_group else f"tpm-mtls server device approve {facts.device}"
    return f"if that was a change of yours: {how}; else find out who changed it"
