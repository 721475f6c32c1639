"""The layer that asks again: a busy TPM, or a connection that died."""

from __future__ import annotations

import time

from tpm_mtls_relay.errors import ConnectionLostError
from tpm_mtls_relay.loaded.objects import is_session
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import code_of, sessions_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.messages.wire import Exchange

PATIENCE = 5.0
"""Seconds; Linux asks again for as long (tpm_transmit in drivers/char/tpm/tpm-interface.c), so behind it we do not."""

_FIRST_PAUSE = 0.02  # seconds, as Linux, and doubled each time

_YIELDED, _TESTING, _RETRY = 0x908, 0x90A, 0x922  # TPM_RC, part 2, table 16
_RESOURCE_MANAGER = 11 << 16
_TRY_AGAIN = _RESOURCE_MANAGER | 0x009  # TSS2_BASE_RC_TRY_AGAIN
_BUSY = {_YIELDED, _TESTING, _RETRY, *(_RESOURCE_MANAGER | code for code in (_YIELDED, _TESTING, _RETRY)), _TRY_AGAIN}

_REPEATABLE = {  # changes nothing, so that it may be done twice
    commands.ECC_PARAMETERS,
    commands.GET_CAPABILITY,
    commands.GET_RANDOM,
    commands.HASH,
    commands.NV_READ,
    commands.NV_READ_PUBLIC,
    commands.PCR_READ,
    commands.READ_PUBLIC,
    commands.SIGN,
    commands.VERIFY_SIGNATURE,
}


class Retrying:
    """Asks again when the TPM is busy, for `PATIENCE`, and once when the connection died.

    What the TPM refuses in any other way goes back untouched. A command is only repeated over a new connection when
    nothing of it had been sent, or when it changes nothing in the TPM; and not when it uses a key that went with the
    old connection: then the program is told so (`KEY_GONE`).
    """

    def __init__(
        self,
        below: Exchange,
        objects: Objects,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._below = below
        self._objects = objects
        self._sleep = sleep
        self._clock = clock

    def __call__(self, command: bytes) -> bytes:
        """The TPM's response."""
        end = self._clock() + PATIENCE
        pause = _FIRST_PAUSE
        response = self._ask(command)
        while _is_busy(command, response) and self._clock() + pause < end:
            self._sleep(pause)
            pause *= 2
            response = self._ask(command)
        return response

    def _ask(self, command: bytes) -> bytes:
        try:
            return self._below(command)
        except ConnectionLostError as error:
            if error.sent and not _changes_nothing(command):
                raise
        self._objects.require(command, self._below)
        return self._below(command)


def _is_busy(command: bytes, response: bytes) -> bool:
    code = code_of(response)
    # a self test that goes on in the background is what the program asked for
    return code in _BUSY and not (code == _TESTING and code_of(command) == commands.SELF_TEST)


def _changes_nothing(command: bytes) -> bool:
    return code_of(command) in _REPEATABLE and not any(is_session(handle) for handle, _ in sessions_of(command))
