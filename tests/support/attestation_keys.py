"""Devices with an attestation key in a simulated TPM, without the rest of an enrollment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.attestation_key import FORMAT, AttestationKey, save_attestation_key
from tpm_mtls.structures import EkTemplate
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


def enroll_attestation_key(tpm: SimulatedTpm, folder: Path, *, certificate: bytes | None = None) -> AttestationKey:
    """A new attestation key under the storage root key, written to ``folder`` as an enrollment leaves it."""
    with open_tpm(tpm.tcti) as opened, opened.srk.create_attestation_key() as made:
        with opened.endorsement.use(EkTemplate.ECC_P256) as endorsement:
            ek_public = endorsement.public.data
        key = AttestationKey(
            format=FORMAT,
            public=made.public.data,
            private=made.private,
            ek_template=EkTemplate.ECC_P256,
            ek_public=ek_public,
            certificate=certificate,
        )
    folder.mkdir(exist_ok=True)
    save_attestation_key(folder, key)
    return key
