"""Issuing: decision, signatures, store, token, binding and audit in one transaction, so that all or none happened."""

from __future__ import annotations

import functools
import hmac
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cryptography import x509

from tpm_mtls.certificates import check_dates, spki
from tpm_mtls.errors import CsrRefusedError, EvidenceRefusedError
from tpm_mtls_pki import audit, bindings, policy, profiles, records, registry, tokens
from tpm_mtls_pki.csr import CheckedCsr, check_csr, key_digest
from tpm_mtls_pki.policy import Again, Applicant, Permit, Reason, Refusal, Waiting
from tpm_mtls_pki.profiles import Subject
from tpm_mtls_pki.proof import Proof, prove
from tpm_mtls_pki.refusal_budget import RefusalBudget

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tpm_mtls.evidence import Evidence
    from tpm_mtls_pki.authority import Authority
    from tpm_mtls_pki.clock import Clock
    from tpm_mtls_pki.evidence import Challenge
    from tpm_mtls_pki.profiles import Issuer, Profile


@dataclass(frozen=True)
class Credentials:
    """What came with an enrollment request.

    Attributes:
        user: HTTP Basic user name, if any.
        password: HTTP Basic password, if any.
        certificate: the TLS client's certificate (DER), whose chain TLS has verified; none if none was shown.
    """

    user: str | None
    password: str | None
    certificate: bytes | None

    @property
    def are_shown(self) -> bool:
        """Whether there are any."""
        return self.user is not None or self.certificate is not None

    def __repr__(self) -> str:
        """Without the password."""
        return f"Credentials(user={self.user!r})"


@dataclass(frozen=True)
class Issued:
    """A certificate that answers a request.

    Attributes:
        certificate: the certificate.
        device: for whom.
        grounds: why.
        again: whether it had been issued before.
        ignored: what the CSR asked for in vain.
        attestation: the certificate of the attestation key, if that was verified with it.
    """

    certificate: x509.Certificate
    device: str
    grounds: str
    again: bool
    ignored: tuple[str, ...]
    attestation: x509.Certificate | None = None

    @property
    def certificates(self) -> list[x509.Certificate]:
        """All of them; whoever asked tells them apart by their keys."""
        return [self.certificate, *([] if self.attestation is None else [self.attestation])]


@dataclass(frozen=True)
class Registrar:
    """What issues: an opened CA, its issuing key, and a clock. Any thread may use it."""

    authority: Authority
    issuer: Issuer
    clock: Clock
    refusals: RefusalBudget = field(default_factory=RefusalBudget, repr=False, compare=False)

    def enroll(
        self, credentials: Credentials, csr: bytes, *, renewal: bool, challenge: Challenge | None = None
    ) -> Issued | Waiting | Refusal:
        """Answers an EST enrollment, or with ``renewal`` a re-enrollment.

        1. The token or the certificate that the applicant shows permits it (`policy`); before its CSR is looked at.
           Whoever shows neither goes on only to show evidence.
        2. The CSR passes `check_csr`.
        3. Its evidence, if it has any, passes the checks 1 to 7 (`proof`), against ``challenge``. What fails
           here, or in 2 with evidence, goes to `refuse_evidence`.
        4. In the transaction that issues: 1 once more; checks 8 and 9 (`registry`), which also stop whoever was seen
           with a TPM and comes without; `policy.judge_key`.

        Args:
            credentials: what came with the request.
            csr: the CSR, DER or PEM.
            renewal: whether the current certificate is needed.
            challenge: the exchange that this request belongs to; whoever keeps it gave it out for this request only.

        Raises:
            CsrRefusedError: step 2, without evidence.
            CertificateExpiredError: the issuing CA's own certificate has ended.
            StorageError: the store does not answer; nothing was issued.
        """
        claim: Permit | Refusal | None = None
        if renewal or credentials.are_shown:
            with self.authority.database.reading() as connection:
                claim = self._authorize(connection, credentials, renewal=renewal)  # 1
        if isinstance(claim, Refusal):
            return claim
        try:
            checked = check_csr(csr)  # 2
            proof = self._prove(checked, checked.evidence, challenge) if checked.evidence is not None else None  # 3
        except EvidenceRefusedError as error:
            return self.refuse_evidence(error, challenge, claim)
        with self.authority.database.writing() as connection:
            claim = self._authorize(connection, credentials, renewal=renewal)  # 4
            if isinstance(claim, Refusal):
                return claim
            permit = self._admit(connection, claim, checked, proof)
            return self._decide(connection, permit, checked, proof) if isinstance(permit, Permit) else permit

    def refuse_evidence(
        self, error: EvidenceRefusedError, challenge: Challenge | None, claim: Permit | None = None
    ) -> Refusal:
        """The refusal for ``error``, with its audit row as far as the budget for such rows goes.

        Raises:
            StorageError: the store does not answer.
        """
        left_out, now = self.refusals.spend(), self.clock()
        if left_out is None:
            return Refusal(Reason.EVIDENCE_REFUSED, claim.device if claim is not None else None, error.check)
        with self.authority.database.writing() as connection:
            if left_out:
                audit.append(connection, "refusals-left-out", "unknown", {"count": left_out}, now=now)
            return registry.note_refusal(connection, error, challenge=challenge, claim=claim, now=now)

    def issue(self, profile: Profile, subject: Subject, csr: CheckedCsr) -> Issued:
        """Issues a certificate that an administrator asked for; ``csr`` may be a bare key that was checked.

        Raises:
            CsrRefusedError: the key is somebody else's, compromised, or the CA's own.
            CertificateExpiredError: the issuing CA's own certificate has ended.
            StorageError: the store does not answer; nothing was issued.
        """
        with self.authority.database.writing() as connection:
            reason = self._judge_key_use(connection, profile, subject.name, key_digest(csr.public_key))
            if reason is not None:
                raise CsrRefusedError(
                    f"the key is refused: {reason.value}", hint="make a new key: tpm-mtls keygen create"
                )
            return self._sign(connection, profile, subject, csr, "administrator")

    def _authorize(self, connection: Connection, credentials: Credentials, *, renewal: bool) -> Permit | Refusal | None:
        """What the credentials permit; none if there are none, and a first enrollment may be proved otherwise."""
        if not (renewal or credentials.are_shown):
            return None
        given = credentials.certificate
        applicant = Applicant(
            user=credentials.user,
            token=tokens.find(connection, credentials.password) if credentials.password else None,
            has_certificate=given is not None,
            current=_find_record(connection, given) if given is not None else None,
        )
        authorize = policy.authorize_renewal if renewal else policy.authorize_enrollment
        return authorize(applicant, now=self.clock())

    def _prove(self, csr: CheckedCsr, evidence: Evidence, challenge: Challenge | None) -> Proof:
        now = self.clock()
        with self.authority.database.reading() as connection:
            terms = registry.find_terms(connection, challenge, evidence, now=now)
        return prove(evidence, challenge, spki(csr.public_key), terms=terms, now=now)

    def _admit(
        self, connection: Connection, claim: Permit | None, csr: CheckedCsr, proof: Proof | None
    ) -> Permit | Waiting | Refusal:
        """Checks 8 and 9. A token that was used up is no claim any more, and a device whose TPM is known needs none."""
        now = self.clock()
        if proof is None:
            if claim is None:
                return Refusal(Reason.NO_CREDENTIALS)
            return registry.note_downgrade(connection, claim, renewal=claim.token is None, now=now) or claim
        digest = key_digest(csr.public_key)
        permit = registry.admit(connection, proof.verdict, claim=claim, asked=csr.asked, key_digest=digest, now=now)
        if not isinstance(permit, Permit):
            return permit
        binding = bindings.of_device(connection, permit.device)
        if binding is None:
            return permit
        is_used = permit.token is not None and permit.token.used_at is not None
        if is_used:
            permit = replace(permit, grounds=f"device {permit.device[:50]}", token=None)
        if claim is None or is_used:
            known = records.of_subject(connection, permit.device)
            if policy.is_withdrawn(known, since=binding.bound_at - profiles.BACKDATE):
                return self._refuse(connection, Refusal(Reason.CERTIFICATE_REVOKED, permit.device))
        return permit

    def _decide(self, connection: Connection, permit: Permit, csr: CheckedCsr, proof: Proof | None) -> Issued | Refusal:
        now, digest = self.clock(), key_digest(csr.public_key)
        known = records.of_key(connection, digest)
        decision = policy.judge_key(permit, key_digest=digest, known=known, ca_keys=self._ca_keys(), now=now)
        if isinstance(decision, Again):
            record = next(record for record in known if record.serial == decision.serial)
            audit.append(connection, "certificate-sent-again", permit.device, {"serial": record.serial}, now=now)
            return Issued(
                record.certificate, permit.device, permit.grounds, again=True, ignored=csr.foreign(permit.device)
            )
        if isinstance(decision, Refusal):
            return self._refuse(connection, decision)
        if proof is not None and proof.ak is not None:
            reason = self._judge_key_use(connection, profiles.ATTESTATION, permit.device, key_digest(proof.ak))
            if reason is not None:
                return self._refuse(connection, Refusal(reason, permit.device))
        token = permit.token
        if token is not None and not tokens.claim(connection, token, key_digest=digest, now=now):
            return self._refuse(connection, Refusal(Reason.TOKEN_USED, permit.device))
        issued = self._issue(connection, permit, csr, proof)
        if token is not None:
            tokens.record(connection, token, records.serial_text(issued.certificate))
        return issued

    def _refuse(self, connection: Connection, refusal: Refusal) -> Refusal:
        """Writes the audit row for somebody who was known already."""
        detail = {"reason": refusal.reason.value}
        audit.append(connection, "enrollment-refused", refusal.device or "unknown", detail, now=self.clock())
        return refusal

    def _issue(self, connection: Connection, permit: Permit, csr: CheckedCsr, proof: Proof | None) -> Issued:
        device, grounds, now = permit.device, permit.grounds, self.clock()
        if proof is None:
            return self._sign(connection, profiles.DEVICE, Subject.device(device), csr, grounds)
        issued = self._sign(connection, profiles.DEVICE, proof.device(device), csr, grounds)
        serial, digest = records.serial_text(issued.certificate), key_digest(csr.public_key)
        registry.note_issued(connection, permit, proof.verdict, serial=serial, key_digest=digest, now=now)
        if proof.ak is None:
            return issued
        ak = self._sign(connection, profiles.ATTESTATION, proof.attestation_key(device), CheckedCsr(proof.ak), grounds)
        return replace(issued, attestation=ak.certificate)

    def _sign(
        self, connection: Connection, profile: Profile, subject: Subject, csr: CheckedCsr, grounds: str
    ) -> Issued:
        now = self.clock()
        check_dates(self.issuer.certificate, now=now, what="the issuing CA's certificate")
        certificate = profiles.build_leaf(profile, subject, csr.public_key, self.issuer, now=now)
        digest, ignored = key_digest(csr.public_key), csr.foreign(subject.name)
        serial = records.add(
            connection,
            certificate,
            profile=profile.name,
            subject=subject.name,
            key_digest=digest,
            grounds=grounds,
            now=now,
        )
        detail = {"serial": serial, "profile": profile.name, "key": digest, "grounds": grounds, "ignored": ignored}
        audit.append(connection, "certificate-issued", subject.name, detail, now=now)
        return Issued(certificate, subject.name, grounds, again=False, ignored=ignored)

    def _judge_key_use(self, connection: Connection, profile: Profile, name: str, digest: str) -> Reason | None:
        known = records.of_key(connection, digest)
        return policy.judge_key_use(profile.name, name, key_digest=digest, known=known, ca_keys=self._ca_keys())

    def _ca_keys(self) -> frozenset[str]:
        return _key_digests(self.authority.root, self.authority.issuing)


@functools.lru_cache(maxsize=4)
def _key_digests(*certificates: x509.Certificate) -> frozenset[str]:
    keys = (certificate.public_key() for certificate in certificates)
    return frozenset(key_digest(key) for key in keys)  # type: ignore[arg-type]


def _find_record(connection: Connection, der: bytes) -> records.Record | None:
    """The record of the very certificate ``der``: not of another one with its serial number."""
    certificate = x509.load_der_x509_certificate(der)
    record = records.find(connection, records.serial_text(certificate))
    return record if record is not None and hmac.compare_digest(record.der, der) else None
