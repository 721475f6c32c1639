"""Certificate requests (PKCS #10, RFC 2986), signed inside the TPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tpm_mtls import certification_request
from tpm_mtls.errors import PolicyError, PolicyRefusedError, UsageError
from tpm_mtls.evidence import OID_ATTESTATION, Evidence, encode_bundle
from tpm_mtls.response_codes import naming_key
from tpm_mtls_keygen.signer import signature_hash, signer_for

if TYPE_CHECKING:
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.keys import TpmKey

NAME_LIMIT = 64
"""Characters of a commonName: RFC 5280, appendix A.1 (ub-common-name)."""


def build_csr(tpm: Tpm, key: TpmKey, *, common_name: str | None = None, evidence: Evidence | None = None) -> bytes:
    """A certificate request for ``key``, DER; one command (Sign).

    It asks for no extensions: the CA knows what it wants to issue, and takes nothing but public key and evidence.

    Args:
        tpm: the open TPM that holds the key.
        key: from `create_key` or `load_key`.
        common_name: the subject's only attribute; an empty subject without it.
        evidence: what the TPM says about the key, for the attribute id-aa-attestation.

    Raises:
        CredentialError: the key's algorithm is none that certificates are made for.
        UsageError: ``common_name`` is too long or not printable.
        PolicyRefusedError, PolicyError: the key's policy does not hold; the hint names the key.
        AuthorizationError: the key has another authorization value.
        TpmLockoutError: too many wrong ones were tried.
    """
    signer = signer_for(tpm, key.loaded)
    attributes = {} if evidence is None else {OID_ATTESTATION: encode_bundle(evidence)}
    try:
        return certification_request.build_csr(
            signer, signature_hash(signer.algorithm), subject=_subject(common_name), attributes=attributes
        )
    except (PolicyRefusedError, PolicyError) as error:
        error.hint = naming_key(error.hint, key.reference)
        raise


def csr_pem(request: bytes) -> bytes:
    """A request in PEM, from DER."""
    return x509.load_der_x509_csr(request).public_bytes(Encoding.PEM)


def _subject(common_name: str | None) -> x509.Name:
    if common_name is None:
        return x509.Name([])
    if not 0 < len(common_name) <= NAME_LIMIT or not common_name.isprintable():
        raise UsageError(
            f"a common name has 1 to {NAME_LIMIT} printable characters", hint="give the device's name, or leave it out"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
