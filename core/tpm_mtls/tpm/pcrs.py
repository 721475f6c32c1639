"""The platform configuration registers: TPM2_PCR_Read (TPM 2.0 Library part 3 rev 1.59, 22.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm2_pytss.constants import TPM2_ALG, TPM2_CAP
from tpm2_pytss.types import TPML_PCR_SELECTION, TPMS_PCR_SELECTION

from tpm_mtls.errors import AlgorithmUnsupportedError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tpm_mtls.tpm.resources import Resources

_BANKS = {"sha1": TPM2_ALG.SHA1, "sha256": TPM2_ALG.SHA256, "sha384": TPM2_ALG.SHA384, "sha512": TPM2_ALG.SHA512}
_BANKS_LIMIT = 16  # TPM2_NUM_PCR_BANKS of libtss2
_HASH = 0x083  # TPM_RC_HASH, without the parameter's number


class Pcrs:
    """The PCRs of an open TPM; `Tpm.pcrs` is the one to use."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    def banks(self) -> tuple[str, ...]:
        """The banks that the TPM keeps, of those that are known here (TPM2_GetCapability: part 3, 30.2)."""
        with self._resources.command("read which PCR banks there are"):
            _, data = self._context.get_capability(TPM2_CAP.PCRS, 0, _BANKS_LIMIT)
        listed = data.data.assignedPCR
        kept = {int(each.hash) for each in listed if any(bytes(each.pcrSelect)[: int(each.sizeofSelect)])}
        return tuple(name for name, algorithm in _BANKS.items() if int(algorithm) in kept)

    def read(self, bank: str, pcrs: Iterable[int]) -> dict[int, bytes]:
        """The values of ``pcrs`` in ``bank`` (``sha256``, …), by number; one command for each eight.

        Raises:
            AlgorithmUnsupportedError: the TPM does not have that bank, or does not keep it.
            StateError: something extended one meanwhile.
        """
        wanted = sorted(set(pcrs))
        values: dict[int, bytes] = {}
        counters: set[int] = set()
        while missing := [pcr for pcr in wanted if pcr not in values]:
            with self._resources.command(f"read PCRs of the bank {bank}"):
                counter, selected, digests = self._context.pcr_read(pcr_selection(bank, missing))
            counters.add(int(counter))
            found = _selected(selected)
            if not found:
                raise _no_bank(bank)
            values |= zip(found, (bytes(digest) for digest in digests), strict=True)
        if len(counters) > 1:
            raise StateError(
                "the PCRs changed while they were read", hint="run it when the machine has finished booting"
            )
        return values


def pcr_selection(bank: str, pcrs: Sequence[int]) -> TPML_PCR_SELECTION:
    """PCRs of one ``bank`` as commands take them."""
    return pcr_selections({bank: pcrs})


def pcr_selections(pcrs: Mapping[str, Sequence[int]]) -> TPML_PCR_SELECTION:
    """PCRs of several banks as commands take them."""
    return TPML_PCR_SELECTION([TPMS_PCR_SELECTION(hash=_BANKS[bank], pcrs=list(of)) for bank, of in pcrs.items()])


def _selected(selection: TPML_PCR_SELECTION) -> list[int]:
    bits = int.from_bytes(bytes(selection[0].pcrSelect)[: int(selection[0].sizeofSelect)], "little")
    return [pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1]


def _no_bank(bank: str) -> AlgorithmUnsupportedError:
    return AlgorithmUnsupportedError(
        f"this TPM keeps no PCR bank {bank}", hint="see which there are: tpm2_getcap pcrs; usual is sha256", rc=_HASH
    )
