"""What somebody asks of a renewal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import HierarchyAuthorization, Secret


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        folder: the identity folder.
        rotate_key: whether the new certificate is for a new key.
        only_if_due: whether nothing is done before it is due (`due_at`).
        auth: where the key's authorization value is, if it has one; see `tpm_mtls.authorization`. A new key gets it.
        tcti: where the TPM is; see `tpm_mtls.tcti.resolve_tcti`.
        owner_authorization: authorization value of the owner hierarchy, if it has one.
        srk_authorization: authorization value of the storage root key, if it has one.
        endorsement_authorization: authorization value of the endorsement hierarchy, if it has one.
    """

    folder: Path
    rotate_key: bool = False
    only_if_due: bool = False
    auth: str | None = None
    tcti: str | None = None
    owner_authorization: HierarchyAuthorization | None = None
    srk_authorization: Secret | None = None
    endorsement_authorization: HierarchyAuthorization | None = None
