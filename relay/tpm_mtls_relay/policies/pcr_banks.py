"""Which PCRs the TPM has: TPM2_GetCapability(TPM_CAP_PCRS), TPM 2.0 Library part 3 rev 1.59, 30.2."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages.commands import GET_CAPABILITY
from tpm_mtls_relay.messages.wire import simple_command
from tpm_mtls_relay.policies.session import answer_of, malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.messages.wire import Exchange

_CAP_PCRS = 5


def allocated_pcrs(exchange: Exchange) -> dict[int, set[int]]:
    """The PCRs of each bank, by its TPM_ALG_ID.

    Raises:
        RelayError: the TPM refuses, or answers garbage.
    """
    question = b"".join(number.to_bytes(4, "big") for number in (_CAP_PCRS, 0, 1))
    answer = answer_of(exchange, simple_command(GET_CAPABILITY, question))
    try:
        answer.take(5)  # moreData, and the capability again
        banks = {}
        for _ in range(answer.number(4)):
            bank = answer.number(2)
            bits = int.from_bytes(answer.take(answer.number(1)), "little")
            banks[bank] = {pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1}
    except UnreadableError as error:
        raise malformed(error) from error
    return banks
