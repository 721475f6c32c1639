"""What there is to see of the TPM's life cycle; `tpm_mtls.life_cycle` judges it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.errors import EvidenceError, HandleNotFoundError, HandleOccupiedError, TpmRefusedError
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls.life_cycle import Observed
from tpm_mtls.structures import EkTemplate, ek_hash

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.tpm import Tpm


def observe(tpm: Tpm, folder: Path, record: IdentityRecord) -> Observed:
    """What the TPM says now (three or four commands; some more where the storage root key is not the record's).

    The endorsement key is only made where the storage root key does not settle it: a chip takes long for one.

    Raises:
        TpmUnavailableError, TpmRefusedError: the TPM does not answer, or refuses.
        IdentityError, StorageError: the attestation key's record is damaged, or cannot be read.
    """
    srk_name = _srk_name(tpm)
    reset_count = tpm.facts().reset_count
    has_key = _has_key(tpm, record)
    settled = has_key or srk_name == record.srk_name
    ek_sha256 = None if settled or record.ek_sha256 is None else _endorsement_hash(tpm, folder)
    return Observed(srk_name, ek_sha256, reset_count, has_key=has_key)


def _srk_name(tpm: Tpm) -> str | None:
    try:
        public = tpm.srk.read()
    except HandleOccupiedError:  # something that is no storage key
        return None
    return public.name.hex() if public is not None else None


def _has_key(tpm: Tpm, record: IdentityRecord) -> bool:
    reference = parse_key_reference(record.key)
    if not isinstance(reference, PersistentHandle):
        return False
    try:
        return tpm.read_public(reference.handle).public.name.hex() == record.key_name
    except HandleNotFoundError:
        return False


def _endorsement_hash(tpm: Tpm, folder: Path) -> str | None:
    known = load_attestation_key(folder)
    with suppress(EvidenceError, TpmRefusedError):  # only to say more about what has gone wrong anyway
        template = known.ek_template if known else next(iter(tpm.endorsement.certified()), EkTemplate.ECC_P256)
        with tpm.endorsement.use(template) as key:
            return ek_hash(key.public.spki or b"")
    return None
