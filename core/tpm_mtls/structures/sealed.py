"""Sealed data: what TPM2_Create gives back for it, as a value and in files that other tools read.

TPM 2.0 Library part 1 rev 1.59, 25.1.6 (a keyedhash object that neither signs nor decrypts); part 3, 12.1 and 12.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import PemError
from tpm_mtls.structures.public_area import Attribute, parse_public_area
from tpm_mtls.structures.tss2_file import PRIVATE_LIMIT, Kind, Tss2File, parse_tss2_file

if TYPE_CHECKING:
    from tpm_mtls.structures.public_area import PublicArea

SEALED_LIMIT: Final = 128
"""Bytes that a TPM seals at most: MAX_SYM_DATA, part 2, 11.1.14."""


@dataclass(frozen=True)
class SealedObject:
    """Data that only one TPM opens, and only as its policy or authorization value say; no secret itself.

    Attributes:
        public: its public area.
        private: the data, encrypted by the parent: content of TPM2B_PRIVATE, without its size.
    """

    public: PublicArea
    private: bytes

    @property
    def public_file(self) -> bytes:
        """TPM2B_PUBLIC: what tpm2-tools take as ``-u``."""
        return _sized(self.public.data)

    @property
    def private_file(self) -> bytes:
        """TPM2B_PRIVATE: what tpm2-tools take as ``-r``."""
        return _sized(self.private)


def sealed_object(public: PublicArea, private: bytes) -> SealedObject:
    """The sealed object of these two parts.

    Raises:
        PemError: the public area is not that of sealed data.
    """
    if public.algorithm != "keyedhash" or public.attributes & (Attribute.SIGN | Attribute.DECRYPT):
        raise PemError(f"no sealed data, but a key: {public}", hint="give what tpm-mtls seal wrote")
    return SealedObject(public, private)


def read_sealed_files(public_file: bytes, private_file: bytes) -> SealedObject:
    """The sealed object in TPM2B_PUBLIC and TPM2B_PRIVATE, as ``tpm2_create -u -r`` writes them.

    Raises:
        PemError: malformed, oversized, or no sealed data.
    """
    private = _unsized(private_file, "private")
    if len(private) > PRIVATE_LIMIT:
        raise PemError(f"the sealed data's private part has {len(private)} bytes", hint="copy the file again")
    return sealed_object(parse_public_area(_unsized(public_file, "public")), private)


def parse_sealed_pem(data: bytes, name: str = "the file") -> Tss2File:
    """The first ``TSS2 PRIVATE KEY`` block of PEM ``data``, which holds sealed data; ``name`` is for the errors.

    `sealed_part` is what `tpm_mtls.tpm.sealing.Sealing.unseal` takes.

    Raises:
        PemError: no such block, oversized, truncated, not what the format says, or of a key.
    """
    file = parse_tss2_file(data, name, Kind.SEALED)
    sealed_part(file)
    return file


def sealed_part(file: Tss2File) -> SealedObject:
    """The sealed object in ``file``.

    Raises:
        PemError: it holds something else.
    """
    return sealed_object(file.public, file.private)


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def _unsized(data: bytes, what: str) -> bytes:
    if len(data) <= 2 or int.from_bytes(data[:2], "big") != len(data) - 2:  # noqa: PLR2004 - the size has two bytes
        raise PemError(f"the sealed data's {what} part has another size than it says", hint="copy the file again")
    return data[2:]
