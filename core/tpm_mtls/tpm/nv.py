"""The TPM's NV memory: what is there, reading it, and writing what is ours.

It wears out after some 100,000 writes (TPM 2.0 Library part 1 rev 1.59, 37.7), so nothing writes it without a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from tpm_mtls.errors import HandleOccupiedError, TpmRefusedError

if TYPE_CHECKING:
    from tpm_mtls.tpm.resources import Resources

NV_FIRST: Final = 0x01000000
"""The first NV index: TPM_HT_NV_INDEX, part 2, 7.2."""

PIECE: Final = 768
"""Bytes of one read or write: what the smallest chips take at a time (Infineon SLB9670)."""

_OURS: Final = TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
_WRITTEN: Final = TPMA_NV.WRITTEN
_READABLE: Final = TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD
_NV_DEFINED: Final = 0x14C  # TPM_RC_NV_DEFINED
_LARGEST_INDEX: Final = 0x117  # TPM_PT_NV_INDEX_MAX: part 2, 6.13
_SMALLEST_LARGEST: Final = 1536  # bytes of an index that every PC Client TPM has: its profile, 4.5
_HANDLES_AT_ONCE: Final = 128


@dataclass(frozen=True)
class NvIndex:
    """The public area of an NV index (TPMS_NV_PUBLIC: part 2, 13.6).

    Attributes:
        index: its handle.
        size: bytes of its data area.
        attributes: TPMA_NV.
        written: whether it was ever written; otherwise it holds nothing that could be read.
        ours: whether its attributes are those that `NvMemory.define` gives.
    """

    index: int
    size: int
    attributes: int
    written: bool
    ours: bool


class NvMemory:
    """The NV memory of an open TPM; `Tpm.nv` is the one to use."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    def indices(self, first: int = NV_FIRST) -> tuple[int, ...]:
        """All NV indices in use from ``first`` on, ascending (one command for each 128)."""
        found: list[int] = []
        more = True
        while more:
            start = found[-1] + 1 if found else first
            with self._resources.command("list the NV indices"):
                more, data = self._context.get_capability(TPM2_CAP.HANDLES, start, _HANDLES_AT_ONCE)
            listed = data.data.handles
            found += [int(listed[i]) for i in range(int(listed.count))]
        return tuple(found)

    def largest(self) -> int:
        """Bytes of the largest index that this TPM takes (one command)."""
        with self._resources.command("read the TPM's properties"):
            _, data = self._context.get_capability(TPM2_CAP.TPM_PROPERTIES, _LARGEST_INDEX, 1)
        listed = data.data.tpmProperties
        values = {int(listed[i].property): int(listed[i].value) for i in range(int(listed.count))}
        return values.get(_LARGEST_INDEX, 0) or _SMALLEST_LARGEST

    def describe(self, index: int) -> NvIndex:
        """What ``index`` is (one command).

        Raises:
            HandleNotFoundError: it is not defined.
        """
        with self._resources.reference(index) as resource, self._resources.command(f"look at NV {index:#010x}"):
            public, _ = self._context.nv_read_public(resource)
        area = public.nvPublic
        attributes = int(area.attributes)
        return NvIndex(
            index=index,
            size=int(area.dataSize),
            attributes=attributes,
            written=bool(attributes & _WRITTEN),
            ours=attributes & ~_WRITTEN == _OURS,
        )

    def read(self, index: int, *, limit: int, about: NvIndex | None = None) -> bytes:
        """All of the written ``index``, but at most ``limit`` bytes (one command, and one for each 768 bytes).

        Args:
            index: which.
            limit: bytes.
            about: what `describe` said, which saves the first command.

        Raises:
            HandleNotFoundError: it is not defined.
            TpmRefusedError: it was never written, or may not be read without an authorization value or a policy.
        """
        about = about or self.describe(index)
        if not about.attributes & _READABLE:
            raise TpmRefusedError(
                f"NV {index:#010x} cannot be read: its attributes allow neither its own authorization nor the owner's",
                hint="its maker decides that",
                rc=0x149,  # TPM_RC_NV_AUTHORIZATION: what the TPM would answer
            )
        data = b""
        size = min(about.size, limit)
        with self._resources.reference(index) as resource:
            authorized_by = resource if about.attributes & TPMA_NV.AUTHREAD else ESYS_TR.OWNER
            while len(data) < size:
                with self._resources.command(f"read NV {index:#010x}", option="--owner-auth"):
                    piece = self._context.nv_read(
                        resource, min(PIECE, size - len(data)), len(data), auth_handle=authorized_by
                    )
                data += bytes(piece)
        return data

    def define(self, index: int, size: int) -> None:
        """Makes ``index`` with a data area of ``size`` bytes: anybody reads it, the owner writes it (one command).

        Raises:
            HandleOccupiedError: it is there already.
            TpmMemoryError: the NV memory is full.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_OURS, dataSize=size)
        )
        try:
            with self._resources.command(f"make NV {index:#010x}", option="--owner-auth"):
                self._context.tr_close(self._context.nv_define_space(b"", public))
        except TpmRefusedError as error:
            if error.rc != _NV_DEFINED:
                raise
            raise occupied(index) from error

    def write(self, index: int, data: bytes) -> None:
        """Writes ``data`` to the beginning of ``index`` (one command for each 768 bytes).

        Cut off, it leaves new data in front of old: what is written must tell whether it is whole.

        Raises:
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        with self._resources.command(f"look at NV {index:#010x}"):
            resource = self._context.tr_from_tpmpublic(index)
        try:
            for start in range(0, len(data), PIECE):
                with self._resources.command(f"write NV {index:#010x}", option="--owner-auth"):
                    self._context.nv_write(resource, data[start : start + PIECE], start, auth_handle=ESYS_TR.OWNER)
        finally:
            self._context.tr_close(resource)

    def remove(self, index: int) -> None:
        """Removes ``index`` and what it holds (one command).

        Raises:
            HandleNotFoundError: it is not defined.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        with (
            self._resources.reference(index) as resource,
            self._resources.command(f"remove NV {index:#010x}", option="--owner-auth"),
        ):
            self._context.nv_undefine_space(resource)


def occupied(index: int) -> HandleOccupiedError:
    """The error for ``index`` that is in use already."""
    return HandleOccupiedError(
        f"the NV index {index:#010x} is occupied", hint="see what is there: tpm2_nvreadpublic", handle=index
    )
