"""Check 2: the key that signs the quote is an attestation key of this device's TPM. Pure.

Either its certificate says so, which the CA issued on evidence (`tpm_mtls_pki`), or an operator who enrolled the key by
its Name.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from tpm_mtls.certificates import UNREADABLE, Purpose, certificate_spki, check_chain, read_extensions
from tpm_mtls.device_identity import POLICY_RESTRICTED, TpmIdentity, tpm_identity
from tpm_mtls.errors import CredentialError, EvidenceRefusedError
from tpm_mtls.evidence_checks import check_attestation_key
from tpm_mtls.structures import ek_hash, parse_public_area
from tpm_mtls_server.peer import Peer
from tpm_mtls_server.revocation import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tpm_mtls.structures import PublicArea
    from tpm_mtls_server.revocation import RevocationLists

CERTIFICATE_LIMIT: Final = 4 * 1024
"""Bytes of an attestation key's certificate; that of an RSA-4096 key, by a CA with one, has 2 KiB."""

REMEMBERED: Final = 4096
"""Certificates whose chain is not verified again: some 8 MiB. A fleet's devices come once an hour, one after the
other."""

_ENROLL: Final = "enroll the device again, so that its attestation key gets a certificate: tpm-mtls keygen first-boot"


@dataclass(frozen=True)
class Owner:
    """The device that sends a quote.

    Attributes:
        device: the name in its TLS certificate.
        tpm: the TPM in its TLS certificate; none if it names none.
        enrolled: Names of the attestation keys that operators enrolled it with.
    """

    device: str
    tpm: TpmIdentity | None
    enrolled: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class AttestationCertificate:
    """A verified certificate of an attestation key.

    Attributes:
        device: which device it is for: its common name.
        tpm: in which TPM the key lives.
        key: the public key (DER SubjectPublicKeyInfo).
        peer: serial number and issuer, by which a CRL names it; and until when all of its chain is valid.
    """

    device: str
    tpm: TpmIdentity
    key: bytes
    peer: Peer


class AttestationTrust:
    """Whose certificates of attestation keys count. Remembers what it read and verified: a second look is cheap.

    May be used by several threads.
    """

    def __init__(self, authorities: Sequence[x509.Certificate], *, remembered: int = REMEMBERED) -> None:
        """Trusts ``authorities``, roots and issuing CAs alike, for whom the caller vouches."""
        self._authorities = tuple(authorities)
        self._remembered = remembered
        self._verified: OrderedDict[bytes, AttestationCertificate] = OrderedDict()
        self._lock = threading.Lock()
        self._area = functools.lru_cache(remembered)(parse_public_area)

    def area(self, public: bytes) -> PublicArea:
        """What the TPMT_PUBLIC ``public`` says; nothing of it is verified.

        Raises:
            PemError: it is malformed.
        """
        return self._area(public)

    def certificate(self, der: bytes, *, now: datetime) -> AttestationCertificate:
        """What the certificate ``der`` says.

        1. It is one, of a sane size.
        2. It is an attestation key's and leads to one of our CAs at the time ``now`` (`check_chain`).
        3. Our CA verified the key to be restricted (certificatePolicies: tcg-cap-verifiedTPMRestricted).
        4. It names one device and one TPM.

        Not verified: revocation, and whose it is.

        Raises:
            CredentialError: a step failed.
        """
        digest = hashlib.sha256(der).digest()
        with self._lock:
            known = self._verified.get(digest)
        if known is not None and known.peer.not_before <= now <= known.peer.not_after:
            return known
        found = self._verify(der, now)
        with self._lock:
            self._verified[digest] = found
            while len(self._verified) > self._remembered:
                self._verified.popitem(last=False)
        return found

    def _verify(self, der: bytes, now: datetime) -> AttestationCertificate:
        if len(der) > CERTIFICATE_LIMIT:  # 1
            raise CredentialError(f"the certificate is larger than {CERTIFICATE_LIMIT} bytes", hint=_ENROLL)
        try:
            certificate = x509.load_der_x509_certificate(der)
        except UNREADABLE as error:
            raise CredentialError("the certificate is malformed", hint=_ENROLL) from error
        authorities = self._current(now)
        chain = check_chain(certificate, authorities, authorities, now=now, purpose=Purpose.ATTESTATION)  # 2
        extensions = read_extensions(certificate)
        if POLICY_RESTRICTED not in _policies(extensions):  # 3
            raise CredentialError("the certificate does not say that the key was verified", hint=_ENROLL)
        return AttestationCertificate(
            device=_device(certificate),  # 4
            tpm=_tpm(extensions),
            key=certificate_spki(certificate),
            peer=_peer(certificate, extensions, chain),
        )

    def _current(self, now: datetime) -> list[x509.Certificate]:
        """The authorities without those that have expired, or are not valid yet, beside another one of that name."""
        valid = [each for each in self._authorities if each.not_valid_before_utc <= now <= each.not_valid_after_utc]
        names = {each.subject for each in valid}
        return [each for each in self._authorities if each in valid or each.subject not in names]


def check_key(
    public: bytes,
    certificate: bytes | None,
    *,
    owner: Owner,
    trust: AttestationTrust,
    revocation: RevocationLists | None,
    now: datetime,
) -> PublicArea:
    """Check 2: the key with this public area is an attestation key of this device's TPM.

    1. It signs nothing that its TPM did not write itself (`tpm_mtls.evidence_checks.check_attestation_key`).
    2. An operator enrolled this device with its Name; or else:
    3. It has a certificate of our CA (`AttestationTrust.certificate`), for this very key,
    4. with the name of this device and the TPM that its TLS key lives in,
    5. and that was not revoked: the CA's CRL is fresh and does not list it.

    Args:
        public: the key's TPMT_PUBLIC, as the device sent it. Its attributes are true by 2, or else by 3: then its Name
            is not verified.
        certificate: its certificate (DER), if the device sent one.
        owner: the device that sent it.
        trust: whose certificates count.
        revocation: the CRLs; none where there is none that can be read.
        now: the time.

    Returns:
        The key, for check 3.

    Raises:
        EvidenceRefusedError: check 2.
    """
    try:
        key = trust.area(public)
        check_attestation_key(key)  # 1
        if key.name in owner.enrolled:  # 2
            return key
        if certificate is None:
            raise _unknown(key)
        found = trust.certificate(certificate, now=now)  # 3
    except CredentialError as error:
        raise _refused(str(error), error.hint) from error
    if found.key != key.spki:
        raise _refused("the attestation key's certificate is for another key", _ENROLL)
    _check_owner(found, owner)  # 4
    _check_revocation(found, revocation, now)  # 5
    return key


def check_endorsement_key(public: bytes | None, *, owner: Owner, trust: AttestationTrust) -> None:
    """Check 2, too: the endorsement key that the device sends along is that of the TPM in its TLS certificate.

    A device may leave it out; and where the certificate names no TPM, it is held against nothing and kept by nobody.

    Raises:
        EvidenceRefusedError: check 2.
    """
    if public is None or owner.tpm is None:
        return
    try:
        key = trust.area(public).spki
    except CredentialError as error:
        raise _refused(str(error), error.hint) from error
    if key is None or ek_hash(key) != str(owner.tpm):
        raise _refused("the endorsement key is another TPM's than the TLS certificate names", _ENROLL)


def _unknown(key: PublicArea) -> CredentialError:
    return CredentialError(
        f"nobody vouches for the attestation key: it has no certificate, and no operator enrolled {key.name.hex()}",
        hint=f"{_ENROLL}; or, if you know the key: tpm-mtls server device enroll-key",
    )


def _check_owner(found: AttestationCertificate, owner: Owner) -> None:
    if found.device != owner.device:
        raise _refused(f"the attestation key belongs to another device than {owner.device}", _ENROLL)
    if owner.tpm is None:
        raise _refused(
            "the TLS certificate names no TPM, so that nobody knows whether the attestation key is in the same one",
            "enroll the device with its TPM's evidence: tpm-mtls keygen first-boot",
        )
    if found.tpm != owner.tpm:
        raise _refused("the attestation key and the TLS key are in two different TPMs", _ENROLL)


def _check_revocation(found: AttestationCertificate, lists: RevocationLists | None, now: datetime) -> None:
    verdict = Verdict.UNKNOWN if lists is None else lists.verdict(found.peer, now=now)
    if verdict is Verdict.REVOKED:
        raise _refused("the attestation key's certificate was revoked", _ENROLL)
    if verdict is not Verdict.GOOD:
        raise _refused(
            "nobody knows whether the attestation key's certificate was revoked: there is no fresh CRL by its issuer",
            "let the backend have one: tpm-mtls pki crl",
        )


def _device(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or len(certificate.subject.rdns) != 1 or not isinstance(names[0].value, str):
        raise CredentialError("the certificate names no single device", hint=_ENROLL)
    return names[0].value


def _tpm(extensions: x509.Extensions) -> TpmIdentity:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise CredentialError("the certificate names no TPM", hint=_ENROLL) from error
    found = tpm_identity(names)
    if found is None or len(names) != len(found.names()):
        raise CredentialError("the certificate names no TPM, or something else beside it", hint=_ENROLL)
    return found


def _policies(extensions: x509.Extensions) -> set[x509.ObjectIdentifier]:
    try:
        policies = extensions.get_extension_for_class(x509.CertificatePolicies).value
    except x509.ExtensionNotFound:
        return set()
    return {policy.policy_identifier for policy in policies}


def _peer(certificate: x509.Certificate, extensions: x509.Extensions, chain: Sequence[x509.Certificate]) -> Peer:
    try:
        identifier = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        identifier = None
    return Peer(
        name=_device(certificate),
        serial=certificate.serial_number,
        issuer=certificate.issuer.public_bytes(),
        issuer_key=identifier,
        not_before=max(each.not_valid_before_utc for each in chain),
        not_after=min(each.not_valid_after_utc for each in chain),
    )


def _refused(message: str, hint: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint=hint, check=2)
