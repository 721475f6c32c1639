"""The store's side of enrollment with evidence: facts for the rules, and what their decisions change.

How an enrollment goes, each step in the transaction of the ``connection`` that it gets::

    with database.reading() as connection:
        terms = find_terms(connection, challenge, evidence, now=now)
    verdict = judge_evidence(evidence, challenge=challenge, public_key=…, terms=terms, now=now)  # no lock is held
    with database.writing() as connection:
        decision = admit(connection, verdict, claim=…, asked=…, key_digest=…, now=now)
        …issue, if it is a permit and the key passes policy.judge_key…
        note_issued(connection, decision, verdict, serial=…, key_digest=…, now=now)

An `EvidenceRefusedError` of `judge_evidence`, or of reading the request, goes to `note_refusal`, an
enrollment without evidence to `note_downgrade`, both in a writing transaction.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from cryptography import x509

from tpm_mtls.certificates import UNREADABLE, certificate_spki
from tpm_mtls_pki import allow_list, approvals, attestations, audit, bindings, ek_roots, groups, records
from tpm_mtls_pki.admission import BINDING, RENEWAL, DeviceFacts, TpmFacts, judge_device, judge_downgrade, name_device
from tpm_mtls_pki.attestations import Attestation
from tpm_mtls_pki.evidence import EkTrust, Terms, Voucher
from tpm_mtls_pki.policy import Permit, Reason, Refusal, Waiting
from tpm_mtls_pki.profiles import ATTESTATION, BACKDATE

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from tpm_mtls.errors import EvidenceRefusedError
    from tpm_mtls.evidence import Evidence
    from tpm_mtls_pki.evidence import Challenge, Verdict

_NOTE_LENGTH: Final = 200  # characters of a message that go into the audit log
_SUBJECT_LENGTH: Final = 64  # as the table has it


def find_terms(connection: Connection, challenge: Challenge | None, evidence: Evidence, *, now: datetime) -> Terms:
    """What `judge_evidence` is to hold ``evidence`` against, as the administrator set it up."""
    activation = challenge.activation if challenge is not None else None
    if activation is not None:
        facts = _tpm_facts(connection, activation.ek_hash)
        return Terms(
            trust=ek_roots.trust(connection),
            listed=facts.entry is not None,
            imported=facts.group.imported,
            policies=facts.group.policies,
        )
    voucher = next(
        (found for der in evidence.certificates if (found := _find_voucher(connection, der, now)) is not None), None
    )
    group = _tpm_facts(connection, voucher.ek_hash).group if voucher is not None else groups.Group(groups.DEFAULT)
    return Terms(trust=EkTrust(), imported=group.imported, policies=group.policies, voucher=voucher)


def admit(
    connection: Connection,
    verdict: Verdict,
    *,
    claim: Permit | None,
    asked: str | None,
    key_digest: str,
    now: datetime,
) -> Permit | Waiting | Refusal:
    """Checks 8 and 9 for a key that passed 1 to 7, with the audit row of a refusal; ``connection`` is writing.

    The caller goes on with `policy.judge_key`, and after it issued the certificate with `note_issued`, all in one
    transaction. What is refused or waits must be committed, too.

    Args:
        connection: in a writing transaction.
        verdict: what `judge_evidence` found.
        claim: what a token or the current certificate permits (`policy.authorize_enrollment`, `authorize_renewal`);
            none if the TPM alone asks. A token or certificate that was shown and is no good must not become none.
        asked: the device name that the CSR asks for, checked (`check_device_name`); none if it asks for none.
        key_digest: SHA-256 of the CSR's key (SubjectPublicKeyInfo), hex.
        now: the present.

    Returns:
        The permit, for the device and with the claim's token; or the place in the approval queue (HTTP 202); or the
        refusal with its check.
    """
    facts = _tpm_facts(connection, verdict.ek_hash)
    name = name_device(verdict, facts, claim=claim, asked=asked)
    decision: Permit | Refusal | None
    if isinstance(name, Refusal):
        decision = name
    else:
        device = _device_facts(connection, name.device, key_digest)
        decision = judge_device(verdict, name, facts, device, claim=claim)
        if decision is None:
            approval = approvals.request(
                connection, verdict.ek_hash, asked=name.device, endorsed_by=verdict.endorsed_by, now=now
            )
            if approval is not None:
                return Waiting(approval.id, name.device)
            decision = Refusal(Reason.QUEUE_FULL, name.device)
    if isinstance(decision, Refusal):
        _append_refusal(connection, decision, decision.reason.value, verdict.ek_hash, now)
    return decision


def note_issued(
    connection: Connection, permit: Permit, verdict: Verdict, *, serial: str, key_digest: str, now: datetime
) -> None:
    """Binds the TPM to the device if it is not yet, and keeps what was proved for the certificate ``serial``.

    In the transaction in which `admit` gave ``permit``, after the certificate was stored.
    """
    renewed = bindings.of_tpm(connection, verdict.ek_hash) is not None
    if not renewed:
        bindings.bind(connection, permit.device, verdict.ek_hash, now=now)
        approvals.use_up(connection, verdict.ek_hash)
    found = Attestation(
        serial=serial,
        device=permit.device,
        key_digest=key_digest,
        key_name=verdict.key.name.hex(),
        ak_name=verdict.ak.name.hex(),
        ek_hash=verdict.ek_hash,
        endorsed_by=verdict.endorsed_by,
        residency=verdict.residency,
    )
    attestations.add(connection, found)
    detail = {
        "check": RENEWAL if renewed else BINDING,  # the last one that it passed
        "serial": serial,
        "ek": verdict.ek_hash,
        "endorsed_by": verdict.endorsed_by[:_NOTE_LENGTH],
        "residency": verdict.residency.value,
        "key": verdict.key.name.hex(),
    }
    audit.append(connection, "evidence-accepted", permit.device, detail, now=now)


def note_refusal(
    connection: Connection,
    error: EvidenceRefusedError,
    *,
    challenge: Challenge | None,
    claim: Permit | None,
    now: datetime,
) -> Refusal:
    """Writes the audit row for evidence that one of the checks 1 to 7 refused; returns the refusal, for the answer."""
    activation = challenge.activation if challenge is not None else None
    refusal = Refusal(Reason.EVIDENCE_REFUSED, claim.device if claim is not None else None, error.check)
    _append_refusal(connection, refusal, str(error), activation.ek_hash if activation is not None else None, now)
    return refusal


def note_downgrade(connection: Connection, permit: Permit, *, renewal: bool, now: datetime) -> Refusal | None:
    """Check 8 (9 at a renewal) for an applicant that shows no evidence, with its audit row; none if it may go on."""
    refusal = judge_downgrade(permit, was_bound=bindings.was_bound(connection, permit.device), renewal=renewal)
    if refusal is not None:
        _append_refusal(connection, refusal, "no evidence, but the device was seen with a TPM", None, now)
    return refusal


def _append_refusal(connection: Connection, refusal: Refusal, why: str, ek_hash: str | None, now: datetime) -> None:
    detail = {"check": refusal.check, "reason": refusal.reason.value, "why": why[:_NOTE_LENGTH], "ek": ek_hash}
    subject = refusal.device or ek_hash or "unknown"
    audit.append(connection, "evidence-refused", subject[:_SUBJECT_LENGTH], detail, now=now)


def _tpm_facts(connection: Connection, ek_hash: str) -> TpmFacts:
    entry = allow_list.find(connection, ek_hash)
    binding = bindings.of_tpm(connection, ek_hash)
    return TpmFacts(
        entry=entry,
        group=groups.find(connection, entry.group if entry is not None else groups.DEFAULT),
        device=binding.device if binding is not None else None,
        approval=approvals.find(connection, ek_hash),
    )


def _device_facts(connection: Connection, device: str | None, key_digest: str) -> DeviceFacts:
    earlier = attestations.of_key(connection, key_digest)
    if device is None:
        return DeviceFacts(earlier=earlier)
    binding = bindings.of_device(connection, device)
    return DeviceFacts(
        holder=binding.ek_hash if binding is not None else None,
        was_bound=bindings.was_bound(connection, device),
        was_fixed=attestations.was_fixed(connection, device),
        earlier=earlier,
    )


def _find_voucher(connection: Connection, der: bytes, now: datetime) -> Voucher | None:
    """What the certificate says about an attestation key, if it is ours, valid, and of a binding that stands."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except UNREADABLE:
        return None
    record = records.find(connection, records.serial_text(certificate))
    if record is None or not hmac.compare_digest(record.der, der):
        return None
    if record.profile != ATTESTATION.name or record.state(now) != "valid":
        return None
    binding = bindings.of_device(connection, record.subject)
    # one from before the binding is another TPM's, whose name was released
    if binding is None or record.not_before + BACKDATE < binding.bound_at:
        return None
    return Voucher.of_key(binding.ek_hash, certificate_spki(certificate))
