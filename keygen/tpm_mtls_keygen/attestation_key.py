"""Making a device's attestation key (AK); `tpm_mtls.attestation_key` is where it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.attestation_key import FORMAT, AttestationKey

if TYPE_CHECKING:
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.evidence import Endorsement


def make_attestation_key(tpm: Tpm, endorsement: Endorsement) -> AttestationKey:
    """A new attestation key under the storage root key, for which ``endorsement`` will vouch (two commands).

    Raises:
        AlgorithmUnsupportedError: this TPM has no P-256.
        HandleOccupiedError: what sits at the storage root key's handle is no storage key.
    """
    with tpm.srk.create_attestation_key() as loaded:
        return AttestationKey(
            format=FORMAT,
            public=loaded.public.data,
            private=loaded.private,
            ek_template=endorsement.template,
            ek_public=endorsement.public.data,
        )
