"""What the CA remembers of an exchange between the nonce that it gave and the CSR that answers it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509

from tpm_mtls.certificates import UNREADABLE, certificate_spki
from tpm_mtls.errors import EvidenceError
from tpm_mtls.freshness import CERTIFICATE_LIMIT, CHAIN_LIMIT
from tpm_mtls.structures import (
    PublicArea,
    check_credential_key,
    ek_hash,
    ek_public_from_certificate,
    make_credential,
    parse_public_area,
)
from tpm_mtls.structures.credential import SECRET_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

_HINT = "send the EK certificate, or the endorsement key's public area, and the attestation key's public area"


@dataclass(frozen=True)
class Activation:
    """A secret that only one TPM can have: it was encrypted to its endorsement key, for one attestation key.

    Attributes:
        secret: the secret.
        ek: the endorsement key that it was encrypted to.
        ek_certificate: its certificate, which nobody has verified yet; none where there is none.
        ek_chain: what the applicant sent as its issuers.
        ak: the attestation key whose Name it was made for.
    """

    secret: bytes = field(repr=False)
    ek: PublicArea
    ek_certificate: x509.Certificate | None
    ek_chain: tuple[x509.Certificate, ...]
    ak: PublicArea

    @property
    def ek_hash(self) -> str:
        """By which lists and bindings know the endorsement key: SHA-256 of its public key, hex."""
        return ek_hash(self.ek.spki or b"")


@dataclass(frozen=True)
class Challenge:
    """An exchange, as the CA began it. Whoever keeps it gives it out once, in time, and to its own client only.

    Attributes:
        nonce: the nonce, which is public.
        activation: the credential that was sent with it; none if the client asked for a nonce only, and means to show
            an attestation key's certificate.
    """

    nonce: bytes
    activation: Activation | None = None


def make_activation(
    *, ek_certificate: bytes | None, ek_public: bytes | None, ek_chain: Sequence[bytes], ak_public: bytes
) -> tuple[Activation, bytes, bytes]:
    """Makes a fresh secret and the credential that hides it (TPM2_MakeCredential).

    Nothing is verified yet but that a credential can be made: whether the endorsement key is genuine, whether it is the
    certificate's, and what the attestation key is, `judge_evidence` finds out when the answer comes. Asking teaches an
    applicant nothing.

    Args:
        ek_certificate: the EK certificate, DER; may be left out where the key's hash is on the allow-list.
        ek_public: the endorsement key's TPMT_PUBLIC; may be left out where the certificate's key and the TCG's template
            determine it.
        ek_chain: the certificate's issuers, DER.
        ak_public: the attestation key's TPMT_PUBLIC.

    Returns:
        What to remember; credentialBlob (TPM2B_ID_OBJECT); secret (TPM2B_ENCRYPTED_SECRET).

    Raises:
        EvidenceError: something is missing, oversized, or unfit for a credential.
        PemError: something cannot be read.
    """
    if len(ek_chain) > CHAIN_LIMIT:
        raise EvidenceError(f"more than {CHAIN_LIMIT} issuers of an EK certificate", hint=_HINT)
    certificate = parse_certificate(ek_certificate) if ek_certificate is not None else None
    if ek_public is not None:
        ek = parse_public_area(ek_public)
        check_credential_key(ek)
    elif certificate is not None:
        ek = ek_public_from_certificate(certificate)
    else:
        raise EvidenceError("neither an EK certificate nor an endorsement key", hint=_HINT)
    ak, secret = parse_public_area(ak_public), secrets.token_bytes(SECRET_LENGTH)
    activation = Activation(secret, ek, certificate, tuple(parse_certificate(each) for each in ek_chain), ak)
    return activation, *make_credential(ek, ak.name, secret)


def parse_certificate(der: bytes) -> x509.Certificate:
    """The certificate in ``der``, with a key and extensions that can be read.

    Raises:
        EvidenceError: it is oversized or damaged.
        PemError: its key cannot be read.
    """
    if len(der) > CERTIFICATE_LIMIT:
        raise EvidenceError(f"a certificate of more than {CERTIFICATE_LIMIT} bytes", hint=_HINT)
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions, certificate.subject, certificate.issuer
    except UNREADABLE as error:
        raise EvidenceError("a certificate of the evidence is damaged", hint=_HINT) from error
    certificate_spki(certificate)
    return certificate
