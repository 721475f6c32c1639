"""By what a device certificate names the TPM that its key lives in, and says what was verified about the key.

The form of an IEEE 802.1AR LDevID: two otherNames in subjectAltName, both from one digest, and certificate policies.
RFC 4108, 5 (hardwareModuleName); RFC 4043, 3 (permanentIdentifier); TCG: TPM 2.0 Keys for Device Identity and
Attestation, version 1.0, 8 (what stands in them) and TCG OID registry (2.23.133.11.1, 2.23.133.12.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from tpm_mtls.errors import CredentialError

if TYPE_CHECKING:
    from collections.abc import Iterable

OID_HARDWARE_MODULE_NAME: Final = ObjectIdentifier("1.3.6.1.5.5.7.8.4")
OID_PERMANENT_IDENTIFIER: Final = ObjectIdentifier("1.3.6.1.5.5.7.8.3")

OID_TPM_2_0: Final = ObjectIdentifier("2.23.133.1.2")
"""hwType: the hardware module is a TPM 2.0."""

OID_EK_SHA256: Final = ObjectIdentifier("2.23.133.12.1")
"""tcg-on-ekPermIdSha256, the assigner: the identifier is a SHA-256 digest, in hex, that tells the endorsement key."""

POLICY_RESIDENT: Final = ObjectIdentifier("2.23.133.11.1.1")
"""tcg-cap-verifiedTPMResidency: the CA verified that the key is in a TPM."""

POLICY_FIXED: Final = ObjectIdentifier("2.23.133.11.1.2")
"""tcg-cap-verifiedTPMFixed: and that it can never leave it."""

POLICY_RESTRICTED: Final = ObjectIdentifier("2.23.133.11.1.3")
"""tcg-cap-verifiedTPMRestricted: and that it signs only what the TPM itself made: an attestation key."""

EKU_ATTESTATION_KEY: Final = ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate: the extended key usage of an attestation key's certificate."""

EKU_OPERATOR: Final = ObjectIdentifier("2.25.92675513810322693390180826212303619048")
"""The extended key usage, beside clientAuth, of a person who operates the backend: this project's own, made of the
random UUID 45b8a79b-75b1-4d25-aaf0-a5f2e1e7c3e8 (ITU-T X.667, 6)."""

_DIGEST_LENGTH = 32


@asn1.sequence
class _HardwareModuleName:
    type: ObjectIdentifier
    serial: bytes


@asn1.sequence
class _PermanentIdentifier:
    value: str | None
    assigner: ObjectIdentifier | None


@dataclass(frozen=True)
class TpmIdentity:
    """A TPM, as a device certificate names it.

    Attributes:
        digest: SHA-256 of its EK's public key (DER SPKI), 32 bytes. Not of the EK certificate, which may be missing, be
            made anew, or have its ECDSA signature written in another way.
    """

    digest: bytes

    def __str__(self) -> str:
        """In hex."""
        return self.digest.hex()

    def names(self) -> tuple[x509.OtherName, x509.OtherName]:
        """The two alternative names: hardwareModuleName (the digest) and permanentIdentifier (the digest in hex)."""
        module = _HardwareModuleName(type=OID_TPM_2_0, serial=self.digest)
        identifier = _PermanentIdentifier(value=self.digest.hex(), assigner=OID_EK_SHA256)
        return (
            x509.OtherName(OID_HARDWARE_MODULE_NAME, asn1.encode_der(module)),
            x509.OtherName(OID_PERMANENT_IDENTIFIER, asn1.encode_der(identifier)),
        )


def tpm_identity(names: Iterable[x509.GeneralName]) -> TpmIdentity | None:
    """The TPM that the alternative ``names`` of a certificate name; none if they name none. Nothing is verified.

    Raises:
        CredentialError: one of the two names is missing, twice there or malformed, or they name different TPMs; or
            there is an otherName of another kind.
    """
    others = [name for name in names if isinstance(name, x509.OtherName)]
    if not others:
        return None
    found = {name.type_id: name.value for name in others}
    if len(others) != len(found) or found.keys() != {OID_HARDWARE_MODULE_NAME, OID_PERMANENT_IDENTIFIER}:
        raise _malformed()
    try:
        module = asn1.decode_der(_HardwareModuleName, found[OID_HARDWARE_MODULE_NAME])
        identifier = asn1.decode_der(_PermanentIdentifier, found[OID_PERMANENT_IDENTIFIER])
    except ValueError as error:
        raise _malformed() from error
    if (
        (module.type, identifier.assigner) != (OID_TPM_2_0, OID_EK_SHA256)
        or len(module.serial) != _DIGEST_LENGTH
        or identifier.value != module.serial.hex()
    ):
        raise _malformed()
    return TpmIdentity(module.serial)


def _malformed() -> CredentialError:
    return CredentialError(
        "the certificate does not name its TPM as this project's CA does",
        hint="is that a device certificate of our CA?",
    )
