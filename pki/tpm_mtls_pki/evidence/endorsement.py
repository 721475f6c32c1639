"""Check 1: the EK certificate comes from a TPM maker, and says what the TCG wants it to say.

TCG EK Credential Profile for TPM Family 2.0, version 2.5, 3 (certificate contents); RFC 5280, 6.1 (path validation).
The web's rules, which libraries check by default, refuse such certificates: their subject alternative name is critical
and names hardware, and their purpose is neither of TLS's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from tpm_mtls.certificates import check_dates
from tpm_mtls.errors import EvidenceError
from tpm_mtls.evidence_checks import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

EK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate: the purpose of an EK certificate."""

_TPM_NAMES: Final = {  # what the alternative name's directoryName says of the chip: profile 3.2.9
    x509.ObjectIdentifier("2.23.133.2.1"): "manufacturer",
    x509.ObjectIdentifier("2.23.133.2.2"): "model",
    x509.ObjectIdentifier("2.23.133.2.3"): "version",
}
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_EITHER = verification.Criticality.AGNOSTIC
_HINT = "is it a TPM of a maker that you trust? see: tpm-mtls pki ek-roots list; or name it: tpm-mtls pki allow add"


@dataclass(frozen=True)
class EkTrust:
    """The TPM makers' CAs that the administrator put in.

    Attributes:
        roots: trust anchors.
        intermediates: CAs below them, for chips that do not bring these along.
    """

    roots: tuple[x509.Certificate, ...] = ()
    intermediates: tuple[x509.Certificate, ...] = ()


def check_endorsement(
    certificate: x509.Certificate, chain: Sequence[x509.Certificate], trust: EkTrust, *, now: datetime
) -> str:
    """Check 1: ``certificate`` is the EK certificate of a TPM whose maker is trusted.

    1. It follows the profile: version 3; basicConstraints, if there, say that it is no CA; keyUsage has
       keyEncipherment (RSA) or keyAgreement (ECC) and no certificate signing; extendedKeyUsage has
       tcg-kp-EKCertificate; the alternative name tells manufacturer, model and version (whoever they are).
    2. ``now`` lies within its validity.
    3. Names and signatures lead over CAs of ``chain`` and ``trust.intermediates`` to one of ``trust.roots``: each a CA
       that may sign certificates, within its path length and its own validity, with algorithms that are still sound,
       and for EK certificates if it says for what. No certificate of the path has a critical extension that the library
       does not know; certificatePolicies is one of those.

    Not verified: revocation (makers publish CRLs for few chips; revoke what was issued to it: ``pki revoke``), and
    that the key in it is the applicant's (check 2, check 4).

    Args:
        certificate: the EK certificate.
        chain: what the applicant sent along; nothing in it is trusted.
        trust: the makers' CAs.
        now: the present.

    Returns:
        The root's subject (RFC 4514).

    Raises:
        EvidenceRefusedError: check 1.
    """
    with numbered(1):
        _check_profile(certificate)  # 1
        check_dates(certificate, now=now, what="the EK certificate")  # 2
        return _find_root(certificate, chain, trust, now).subject.rfc4514_string()  # 3


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether ``certificate`` says that it is a CA's, that may sign certificates."""
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether ``certificate`` is signed with its own key."""
    if certificate.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _check_profile(certificate: x509.Certificate) -> None:
    if certificate.version != x509.Version.v3:
        raise _refused("is not of version 3")
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise _refused("is a CA's")
    usage = _extension(certificate, x509.KeyUsage)
    is_rsa = isinstance(certificate.public_key(), rsa.RSAPublicKey)
    if usage is None or usage.key_cert_sign or not (usage.key_encipherment if is_rsa else usage.key_agreement):
        raise _refused(f"has no key usage of an endorsement key ({'keyEncipherment' if is_rsa else 'keyAgreement'})")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is None or EK_CERTIFICATE not in purposes:
        raise _refused("has another purpose (extendedKeyUsage)")
    names = _extension(certificate, x509.SubjectAlternativeName)
    told = {each.oid for name in names.get_values_for_type(x509.DirectoryName) for each in name} if names else set()
    if missing := [word for oid, word in _TPM_NAMES.items() if oid not in told]:
        raise _refused(f"does not tell the TPM's {missing[0]}")


def _find_root(
    certificate: x509.Certificate, chain: Sequence[x509.Certificate], trust: EkTrust, now: datetime
) -> x509.Certificate:
    if not trust.roots:
        raise EvidenceError("no TPM maker is trusted", hint="tpm-mtls pki ek-roots add ROOT.pem")
    authorities = verification.ExtensionPolicy.permit_all()
    authorities = authorities.require_present(x509.BasicConstraints, _EITHER, None)
    authorities = authorities.require_present(x509.KeyUsage, _EITHER, _may_sign)
    authorities = authorities.may_be_present(x509.ExtendedKeyUsage, _EITHER, _may_endorse)
    builder = verification.PolicyBuilder().time(now).store(verification.Store(list(trust.roots)))
    builder = builder.extension_policies(ca_policy=authorities, ee_policy=verification.ExtensionPolicy.permit_all())
    try:
        found = builder.build_client_verifier().verify(certificate, [*chain, *trust.intermediates]).chain
    except (verification.VerificationError, ValueError, UnsupportedAlgorithm) as error:
        reason = str(error).partition(" (encountered")[0].rpartition(": ")[2]
        reason = "no CA of it issued that" if "candidates exhausted" in reason else reason
        raise EvidenceError(f"the EK certificate leads to no trusted TPM maker: {reason}", hint=_HINT) from error
    return found[-1]


def _may_sign(_: verification.Policy, __: x509.Certificate, value: x509.KeyUsage) -> None:
    if not value.key_cert_sign:
        raise ValueError("a CA of it may not sign certificates")


def _may_endorse(_: verification.Policy, __: x509.Certificate, value: x509.ExtendedKeyUsage | None) -> None:
    if value is not None and not {EK_CERTIFICATE, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(value):
        raise ValueError("a CA of it may not certify endorsement keys")


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _refused(what: str) -> EvidenceError:
    return EvidenceError(f"the EK certificate {what}", hint=_HINT)
