"""A measurement list as values.

Linux, Documentation/security/IMA-templates.rst, and security/integrity/ima/ (5.4 to 6.12 were read).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

IMA_PCR: Final = 10
"""The PCR that IMA extends: CONFIG_IMA_MEASURE_PCR_IDX; a rule of IMA's policy may name another one (``pcr=``)."""


@dataclass(frozen=True, slots=True)
class ImaEntry:
    """One entry of the list.

    Attributes:
        pcr: which PCR it says it extended.
        template: what it is made of: ``ima-ng``, ``ima-sig``, …, or a format such as ``d-ng|n-ng|sig``; not measured.
        data: what the template's digests are made from.
        violation: whether the kernel could not measure the file: somebody wrote it meanwhile.
        path: the file's name as the kernel saw it, or what else was measured (``boot_aggregate``, a key ring); empty
            for templates that are not known here. Bytes that are not UTF-8 are escaped; control characters are not.
        algorithm: hash of ``digest``, such as ``sha256``; empty if it is not known.
        digest: of the file; empty if it is not known.
    """

    pcr: int
    template: str
    data: bytes
    violation: bool
    path: str
    algorithm: str
    digest: bytes

    def extended(self, bank: str, *, padded: bool = False) -> bytes:
        """With which value the kernel extends the PCR in ``bank``.

        Args:
            bank: such as ``sha256``.
            padded: as Linux before 5.8 did, and later ones do for a hash that they lack: the SHA-1 digest, with zeros
                behind it up to the bank's size.
        """
        hasher = hashlib.new(bank, usedforsecurity=False)
        if self.violation:
            return b"\xff" * hasher.digest_size
        if padded:
            return hashlib.sha1(self.data, usedforsecurity=False).digest().ljust(hasher.digest_size, b"\0")
        hasher.update(self.data)
        return hasher.digest()


@dataclass(frozen=True, slots=True)
class ImaLog:
    """A measurement list. Nobody has verified that any of it happened: see `tpm_mtls.ima.entries_behind`.

    Attributes:
        entries: all of them, in their order.
    """

    entries: tuple[ImaEntry, ...]
