"""What a TPM can do: algorithms, curves and commands (TPM 2.0 Library part 3 rev 1.59, 30.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import TPM2_CAP

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tpm_mtls.tpm.resources import Resources

_AT_ONCE: Final = 64
_COMMAND_INDEX: Final = 0xFFFF  # TPMA_CC, commandIndex: part 2, 8.9
_VENDOR_COMMAND: Final = 1 << 29  # the same, V: the index is the vendor's own


class Inventory:
    """What an open TPM can do; `Tpm.inventory` is the one to use."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    def algorithms(self) -> tuple[int, ...]:
        """TPM_ALG_ID of each algorithm (one command for each 64)."""
        return self._all(TPM2_CAP.ALGS, lambda listed: [int(each.alg) for each in listed.algorithms])

    def curves(self) -> tuple[int, ...]:
        """TPM_ECC_CURVE of each curve (one command for each 64)."""
        return self._all(TPM2_CAP.ECC_CURVES, lambda listed: [int(each) for each in listed.eccCurves])

    def commands(self) -> tuple[int, ...]:
        """TPM_CC of each command that the specification knows (one command for each 64)."""
        found = self._all(TPM2_CAP.COMMANDS, lambda listed: [int(each) for each in listed.command])
        return tuple(each & _COMMAND_INDEX for each in found if not each & _VENDOR_COMMAND)

    def _all(self, capability: TPM2_CAP, listed: Callable[[Any], list[int]]) -> tuple[int, ...]:
        found: list[int] = []
        more = True
        while more:
            first = (found[-1] & _COMMAND_INDEX) + 1 if found else 0
            with self._resources.command("list what the TPM can do"):
                more, data = self._context.get_capability(capability, first, _AT_ONCE)
            found += listed(data.data)
        return tuple(found)
