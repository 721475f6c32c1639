"""What a TPM says of its keys (TPM2_Certify) and PCRs (TPM2_Quote), and which TPM says it (TPM2_ActivateCredential).

TPM 2.0 Library part 1 rev 1.59, 24 (credential protection), 31 (attestation); part 3, 12.5, 18.2 and 18.4.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPMT_SIG_SCHEME

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import EvidenceError, TpmRefusedError
from tpm_mtls.structures import Attribute
from tpm_mtls.tpm.pcrs import pcr_selections

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.values import LoadedKey

_PARAMETER: Final = 0x0C0  # format one, and about a parameter: part 2, 6.6.2
_HASHES: Final = {"sha256": TPM2_ALG.SHA256, "sha384": TPM2_ALG.SHA384, "sha512": TPM2_ALG.SHA512}


@dataclass(frozen=True)
class Certification:
    """What TPM2_Certify returned.

    Attributes:
        attest: TPMS_ATTEST; `tpm_mtls.structures.parse_attest` reads it.
        signature: TPMT_SIGNATURE.
    """

    attest: bytes
    signature: bytes


@dataclass(frozen=True)
class Quotation:
    """What TPM2_Quote returned.

    Attributes:
        attest: TPMS_ATTEST; `tpm_mtls.attestation.quote_checks` verifies it.
        signature: TPMT_SIGNATURE.
    """

    attest: bytes
    signature: bytes


class Attestation:
    """Attestation commands of an open TPM; `Tpm.attestation` is the one to use."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    def certify(self, key: LoadedKey, attestation_key: LoadedKey, qualifying_data: bytes) -> Certification:
        """``attestation_key``'s signature that ``key`` is loaded in this TPM (one command).

        Args:
            key: what is certified.
            attestation_key: from `StorageRootKey.create_attestation_key`.
            qualifying_data: what shows that it is fresh; at most 64 bytes.

        Raises:
            AuthorizationError: the key has another authorization value (certifying needs it, part 3, 18.2).
        """
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # the attestation key's own
        with self._resources.command("certify the key"):
            attest, signature = self._context.certify(
                ESYS_TR(key.resource), ESYS_TR(attestation_key.resource), qualifying_data, scheme
            )
            return Certification(bytes(attest), bytes(signature.marshal()))

    def quote(self, attestation_key: LoadedKey, qualifying_data: bytes, pcrs: Mapping[str, Sequence[int]]) -> Quotation:
        """``attestation_key``'s signature of what ``pcrs`` hold (one command).

        The values themselves are not in it, only their digest: `tpm_mtls.tpm.pcrs.Pcrs.read` reads them.

        Args:
            attestation_key: a signing key with a scheme of its own, as every restricted one has.
            qualifying_data: what shows that it is fresh; at most 64 bytes.
            pcrs: numbers of PCRs by bank; a bank that the TPM does not keep is left out of the quote.

        Raises:
            AuthorizationError: the key has another authorization value.
        """
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # the attestation key's own
        with self._resources.command("quote the PCRs"):
            attest, signature = self._context.quote(
                ESYS_TR(attestation_key.resource), pcr_selections(pcrs), qualifying_data, scheme
            )
            return Quotation(bytes(attest), bytes(signature.marshal()))

    def activate_credential(
        self,
        endorsement_key: LoadedKey,
        attestation_key: LoadedKey,
        credential_blob: bytes,
        encrypted_secret: bytes,
    ) -> Secret:
        """The secret of a credential that was made for these two keys.

        One command for an endorsement key with userWithAuth (the profile's high range), three for one that only the
        endorsement hierarchy's authorization opens (the low range).

        Args:
            endorsement_key: from `EndorsementKeys.use`.
            attestation_key: which the credential names.
            credential_blob: TPM2B_ID_OBJECT.
            encrypted_secret: TPM2B_ENCRYPTED_SECRET.

        Raises:
            EvidenceError: it is malformed, or for another attestation key, endorsement key or TPM.
            AuthorizationError: the endorsement hierarchy has another authorization value.
        """
        try:
            blob, used = TPM2B_ID_OBJECT.unmarshal(credential_blob)
            secret, secret_used = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
        except TSS2_Exception as error:
            raise _malformed() from error
        if (used, secret_used) != (len(credential_blob), len(encrypted_secret)):
            raise _malformed()
        ak, ek = ESYS_TR(attestation_key.resource), ESYS_TR(endorsement_key.resource)
        if Attribute.USERWITHAUTH in endorsement_key.public.attributes:
            with self._activating():
                return Secret(bytes(self._context.activate_credential(ak, ek, blob, secret)))
        algorithm = _HASHES[endorsement_key.public.name_algorithm]
        with self._resources.endorsement_session(algorithm) as session, self._activating():
            return Secret(
                bytes(
                    self._context.activate_credential(ak, ek, blob, secret, session1=ESYS_TR.PASSWORD, session2=session)
                )
            )

    @contextmanager
    def _activating(self) -> Iterator[None]:
        try:
            with self._resources.command("activate the credential"):
                yield
        except TpmRefusedError as error:
            if error.rc & _PARAMETER != _PARAMETER:
                raise
            raise EvidenceError(
                "the credential is not for this TPM and this attestation key",
                hint="ask for another nonce; if it stays, somebody between here and the CA answers in its place",
            ) from error


def _malformed() -> EvidenceError:
    return EvidenceError("the credential is malformed", hint="is that the CA's answer?")
