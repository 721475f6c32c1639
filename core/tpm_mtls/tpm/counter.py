"""Counters in the TPM's NV memory, which nobody can turn back: against old signed policies.

A counter that is made anew starts where the highest one that the TPM ever had ended, so removing it and making it
again turns nothing back either (TPM 2.0 Library part 1 rev 1.59, 37.2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_NT, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from tpm_mtls.errors import HandleNotFoundError, HandleOccupiedError

if TYPE_CHECKING:
    from tpm_mtls.tpm.nv import NvMemory
    from tpm_mtls.tpm.resources import Resources

_SIZE: Final = 8
_ATTRIBUTES: Final = (
    TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | int(TPM2_NT.COUNTER) << 4
)


class Counters:
    """The counters of an open TPM; `Tpm.counters` is the one to use."""

    def __init__(self, resources: Resources, nv: NvMemory) -> None:
        self._resources = resources
        self._context = resources.context
        self._nv = nv

    def read(self, index: int) -> int | None:
        """Where the counter at ``index`` stands; none where there is none, or it never counted (two commands).

        Raises:
            HandleOccupiedError: something that is no counter of ours is there.
        """
        try:
            about = self._nv.describe(index)
        except HandleNotFoundError:
            return None
        if about.attributes & ~TPMA_NV.WRITTEN != _ATTRIBUTES or about.size != _SIZE:
            raise HandleOccupiedError(
                f"the NV index {index:#010x} is occupied by something else than a counter for policies",
                hint="name another one: --counter; what is there: tpm2_nvreadpublic",
                handle=index,
            )
        return int.from_bytes(self._nv.read(index, limit=_SIZE, about=about), "big") if about.written else None

    def make(self, index: int) -> int:
        """Makes the counter at ``index`` if there is none, and lets it count once; returns where it stands.

        Raises:
            HandleOccupiedError: something that is no counter of ours is there.
            TpmMemoryError: the NV memory is full.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        value = self.read(index)
        if value is not None:
            return value
        if index not in self._nv.indices(index):
            self._define(index)
        self.increment(index)
        return self.read(index) or 0

    def increment(self, index: int) -> None:
        """Lets the counter at ``index`` count (two commands, one of which writes NV memory).

        Raises:
            HandleNotFoundError: it is not there.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        with self._resources.command(f"look at NV {index:#010x}"):
            resource = self._context.tr_from_tpmpublic(index)
        try:
            with self._resources.command(f"advance the counter {index:#010x}", option="--owner-auth"):
                self._context.nv_increment(resource, auth_handle=ESYS_TR.OWNER)
        finally:
            self._context.tr_close(resource)

    def _define(self, index: int) -> None:
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_ATTRIBUTES, dataSize=_SIZE)
        )
        with self._resources.command(f"make the counter {index:#010x}", option="--owner-auth"):
            self._context.tr_close(self._context.nv_define_space(b"", public))
