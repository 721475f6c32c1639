"""What a TPM says now of that which a policy is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tpm_mtls.errors import AlgorithmUnsupportedError
from tpm_mtls.policy.check import Present, wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.tpm.counter import Counters
    from tpm_mtls.tpm.pcrs import Pcrs


class Registers(Protocol):
    """An open TPM, as far as policies look at one.

    Attributes:
        pcrs: its platform configuration registers.
        counters: counters in its NV memory.
    """

    pcrs: Pcrs
    counters: Counters


def observe(tpm: Registers, policy: Sequence[Assertion], signed: Sequence[FoundPolicy]) -> Present:
    """What ``tpm`` says of that which ``policy``, or one signed for it, is about."""
    pcrs, counters = wanted(policy, signed)
    values = {}
    for bank, numbers in pcrs.items():
        try:
            values[bank] = tpm.pcrs.read(bank, numbers)
        except AlgorithmUnsupportedError:
            continue  # its absence is the answer
    return Present(values, {index: tpm.counters.read(index) for index in counters})
