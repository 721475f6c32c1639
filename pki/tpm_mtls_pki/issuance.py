"""Issuing: decision, signature, store, token and audit row in one transaction, so that all or none of it happened."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509

from tpm_mtls.certificates import check_dates
from tpm_mtls.errors import CsrRefusedError
from tpm_mtls_pki import audit, policy, profiles, records, tokens
from tpm_mtls_pki.csr import CheckedCsr, check_csr, key_digest
from tpm_mtls_pki.policy import Again, Applicant, Permit, Reason, Refusal

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tpm_mtls_pki.authority import Authority
    from tpm_mtls_pki.clock import Clock
    from tpm_mtls_pki.profiles import Issuer, Profile, Subject


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
    """

    certificate: x509.Certificate
    device: str
    grounds: str
    again: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Registrar:
    """What issues: an opened CA, its issuing key, and a clock."""

    authority: Authority
    issuer: Issuer
    clock: Clock

    def enroll(self, credentials: Credentials, csr: bytes, *, renewal: bool) -> Issued | Refusal:
        """Answers an EST enrollment, or with ``renewal`` a re-enrollment.

        1. The applicant may have a certificate at all (`policy`); before its CSR is looked at.
        2. The CSR passes `check_csr`.
        3. In the transaction that issues: 1 once more, and `policy.judge_key`.

        Raises:
            CsrRefusedError: step 2.
            CertificateExpiredError: the issuing CA's own certificate has ended.
            StorageError: the store does not answer; nothing was issued.
        """
        with self.authority.database.reading() as connection:
            permit = self._authorize(connection, credentials, renewal=renewal)  # 1
        if isinstance(permit, Refusal):
            return permit
        checked = check_csr(csr)  # 2
        with self.authority.database.writing() as connection:
            permit = self._authorize(connection, credentials, renewal=renewal)  # 3
            if isinstance(permit, Refusal):
                return permit
            return self._decide(connection, permit, checked)

    def issue(self, profile: Profile, subject: Subject, csr: CheckedCsr) -> Issued:
        """Issues a certificate that an administrator asked for; ``csr`` may be a bare key that was checked.

        Raises:
            CsrRefusedError: the key is somebody else's, compromised, or the CA's own.
            CertificateExpiredError: the issuing CA's own certificate has ended.
            StorageError: the store does not answer; nothing was issued.
        """
        digest = key_digest(csr.public_key)
        with self.authority.database.writing() as connection:
            reason = policy.judge_key_use(
                profile.name,
                subject.name,
                key_digest=digest,
                known=records.of_key(connection, digest),
                ca_keys=self._ca_keys(),
            )
            if reason is not None:
                raise CsrRefusedError(
                    f"the key is refused: {reason.value}", hint="make a new key: tpm-mtls keygen create"
                )
            return self._sign(connection, profile, subject, csr, "administrator")

    def _authorize(self, connection: Connection, credentials: Credentials, *, renewal: bool) -> Permit | Refusal:
        given = credentials.certificate
        applicant = Applicant(
            user=credentials.user,
            token=tokens.find(connection, credentials.password) if credentials.password else None,
            has_certificate=given is not None,
            current=_find_record(connection, given) if given is not None else None,
        )
        authorize = policy.authorize_renewal if renewal else policy.authorize_enrollment
        return authorize(applicant, now=self.clock())

    def _decide(self, connection: Connection, permit: Permit, csr: CheckedCsr) -> Issued | Refusal:
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
            return decision
        token = permit.token
        if token is not None and not tokens.claim(connection, token, key_digest=digest, now=now):
            return Refusal(Reason.TOKEN_USED, permit.device)
        subject = profiles.Subject.device(permit.device)
        issued = self._sign(connection, profiles.DEVICE, subject, csr, permit.grounds)
        if token is not None:
            tokens.record(connection, token, records.serial_text(issued.certificate))
        return issued

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

    def _ca_keys(self) -> frozenset[str]:
        return _ca_key_digests(self.authority)


def _ca_key_digests(authority: Authority) -> frozenset[str]:
    keys = (certificate.public_key() for certificate in (authority.root, authority.issuing))
    return frozenset(key_digest(key) for key in keys)  # type: ignore[arg-type]


def _find_record(connection: Connection, der: bytes) -> records.Record | None:
    """The record of the very certificate ``der``: not of another one with its serial number."""
    certificate = x509.load_der_x509_certificate(der)
    record = records.find(connection, records.serial_text(certificate))
    return record if record is not None and hmac.compare_digest(record.der, der) else None
