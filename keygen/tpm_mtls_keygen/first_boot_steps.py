"""What the rules of first boot (`tpm_mtls_keygen.first_boot`) go by, and the steps that they choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.key_algorithm import KeyAlgorithm
    from tpm_mtls_keygen.first_boot_folder import Journal, KeyPlace
    from tpm_mtls_keygen.nv_mirror import Mirror


@dataclass(frozen=True)
class Wish:
    """What was asked for; none where the default, or what an interrupted run began with, will do.

    Attributes:
        place: persistent handle or TSS2 PEM file.
        algorithm: as in `Journal`.
        handle: persistent handle for the key.
        evidence: whether the TPM shall vouch for the key.
        copy: whether a copy of the identity is kept in the TPM's NV memory, and looked for there.
        anew: whether an identity that only the copy remembers is given up.
    """

    place: KeyPlace | None = None
    algorithm: KeyAlgorithm | None = None
    handle: int | None = None
    evidence: bool = False
    copy: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Facts:
    """What is there.

    Attributes:
        folder: the identity folder's name, for messages.
        record: ``identity.json``.
        journal: ``first-boot.json``.
        files: names of the files in the folder.
        srk_name: Name of the storage root key in the TPM, hex; none when there is none, or nobody needed to look.
        key_name: Name of what is where the record, else the journal, says the key is, hex; none when nothing is there.
        handles: the TPM's occupied persistent handles.
        ca_known: whether the CA has told its certificates in this run.
        certificate_error: what is wrong with the certificate and trust files, seen with the key that is there; none
            when they fit it. Means nothing while the key is missing.
        has_attestation_key: whether ``attestation.key.json`` is there.
        copy: the identity that the TPM's NV memory has for this folder.
        copy_error: why ``copy`` cannot be restored; where there is none, why none can be made.
        copied: whether the NV memory is known to have a copy of what the folder says.
        ek_sha256: the TPM's endorsement key, as `IdentityRecord.ek_sha256`; none when nobody needed to look.
        owner: another device that the TPM's NV memory remembers, if it does.
    """

    folder: str
    certificate_error: TpmMtlsError | None
    record: IdentityRecord | None = None
    journal: Journal | None = None
    files: AbstractSet[str] = frozenset()
    srk_name: str | None = None
    key_name: str | None = None
    handles: AbstractSet[int] = frozenset()
    ca_known: bool = False
    has_attestation_key: bool = False
    copy: Mirror | None = None
    copy_error: TpmMtlsError | None = None
    copied: bool = False
    ek_sha256: str | None = None
    owner: str | None = None


@dataclass(frozen=True)
class KeyPlan:
    """The key to make.

    Attributes:
        algorithm: as in `Journal`.
        handle: the free persistent handle it goes to; none for a TSS2 PEM file.
    """

    algorithm: KeyAlgorithm
    handle: int | None


@dataclass(frozen=True)
class ContactCa:
    """Ask the CA for its certificates: before anything is made, so that a wrong URL or trust anchor leaves no trace."""


@dataclass(frozen=True)
class MakeStorageKey:
    """Make the storage root key."""


@dataclass(frozen=True)
class MakeKey:
    """Make the device key of ``plan`` under the storage root key with the Name ``srk_name``."""

    plan: KeyPlan
    srk_name: str


@dataclass(frozen=True)
class MakeAttestationKey:
    """Make the attestation key, and find out which endorsement key vouches for it."""


@dataclass(frozen=True)
class Enroll:
    """Ask the CA for a certificate for the journal's key, and store it."""

    journal: Journal


@dataclass(frozen=True)
class Record:
    """Write ``identity.json``."""

    journal: Journal
    srk_name: str


@dataclass(frozen=True)
class Copy:
    """Write the copy of the identity into the TPM's NV memory."""

    record: IdentityRecord


@dataclass(frozen=True)
class Restore:
    """Bring the identity back from its copy."""

    copy: Mirror


@dataclass(frozen=True)
class Forget:
    """Give up the identity that the copy remembers: remove its key, if that is in the TPM, and then the copy."""

    copy: Mirror


@dataclass(frozen=True)
class Tidy:
    """Remove the journal."""


@dataclass(frozen=True)
class Done:
    """Nothing is left to do."""

    record: IdentityRecord


Step: TypeAlias = (
    ContactCa | MakeStorageKey | MakeKey | MakeAttestationKey | Enroll | Record | Copy | Restore | Forget | Tidy | Done
)
