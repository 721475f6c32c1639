"""The attestation key (AK) of a device: ``attestation.key.json``.

Its blobs lie on disk under the storage root key, so it takes no room in the TPM, and nothing is left there when a run
is killed. Beside them stands what belongs to it: which endorsement key (EK) vouches for it, and its own certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.errors import IdentityError
from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.identity import ATTESTATION_KEY
from tpm_mtls.json_record import load_json_record
from tpm_mtls.structures import EkTemplate, PublicArea, ek_hash, parse_public_area
from tpm_mtls.structures.tss2_file import PRIVATE_LIMIT
from tpm_mtls.tpm import SRK_HANDLE

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.tpm import LoadedKey, Tpm

FORMAT = 1

_LIMIT = 16 * 1024  # bytes: two public areas, a private one and a certificate, in base64
_HINT = "restore it from a backup, or enroll again"


class AttestationKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``attestation.key.json``; byte strings are base64.

    Attributes:
        format: version of this structure.
        public: TPMT_PUBLIC.
        private: content of TPM2B_PRIVATE: encrypted by the storage root key.
        ek_template: the endorsement key's template, by its name in the TCG's profile.
        ek_public: the endorsement key's TPMT_PUBLIC.
        certificate: the attestation key's certificate (DER), if the CA gave one.
    """

    format: int
    public: bytes
    private: bytes
    ek_template: EkTemplate
    ek_public: bytes
    certificate: bytes | None = None

    @property
    def area(self) -> PublicArea:
        """Its public area."""
        return parse_public_area(self.public)

    @property
    def ek_sha256(self) -> str:
        """The endorsement key, as an allow-list knows it: SHA-256 of its public key (DER SubjectPublicKeyInfo), hex."""
        return ek_hash(parse_public_area(self.ek_public).spki or b"")

    def check(self) -> None:
        """Checks that it can be what it says; whether this TPM can load it, only the TPM knows.

        Raises:
            IdentityError: another format, or a private part of an impossible size.
            PemError: a public area is malformed.
        """
        _ = self.area, parse_public_area(self.ek_public)
        if self.format != FORMAT or not 0 < len(self.private) <= PRIVATE_LIMIT:
            raise IdentityError(f"it is of format {self.format}, or its private part has another size", hint=_HINT)

    def load(self, tpm: Tpm) -> LoadedKey:
        """The key, ready for use (one command).

        Raises:
            ForeignKeyError: it was made by another TPM, or this one was cleared since.
        """
        return tpm.load(SRK_HANDLE, self.area, self.private, None)


def load_attestation_key(folder: Path) -> AttestationKey | None:
    """``attestation.key.json`` of ``folder``; none when there is none.

    Raises:
        IdentityError: it is damaged or of a newer format.
        StorageError: it cannot be read.
    """
    return load_json_record(
        folder / ATTESTATION_KEY,
        AttestationKey,
        limit=_LIMIT,
        version=FORMAT,
        hint=_HINT,
        check=AttestationKey.check,
    )


def save_attestation_key(folder: Path, key: AttestationKey) -> None:
    """Writes ``attestation.key.json`` durably, mode 0600.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomic(folder / ATTESTATION_KEY, msgspec.json.format(msgspec.json.encode(key)) + b"\n", mode=PRIVATE_FILE)
