"""Where exceptions, structures and signals cross between tpm2-pytss and the project."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC

from tpm_mtls.errors import AuthorizationError, TpmLockoutError, TpmRefusedError
from tpm_mtls.response_codes import describe, tpm_error
from tpm_mtls.structures import PublicArea, parse_public_area

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.errors import TpmMtlsError

_DAMAGED = {0x095, 0x09A, 0x0A5, 0x0A7}  # TPM_RC_SIZE, INSUFFICIENT, BINDING, ECC_POINT, without the parameter's number
_LOCKOUT, _SHOWS = "--lockout-auth", "tpm2_getcap properties-variable"
_INTERRUPTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # the one that raises by default is restored last


@contextmanager
def command(doing: str, tcti: str, *, option: str = "--auth") -> Iterator[None]:
    """For commands: none is interrupted, and the exceptions of tpm2-pytss become errors of the project.

    Args:
        doing: what the command is for, after "cannot".
        tcti: where the TPM is.
        option: how a user gives the authorization value that the command needs, for the hint.
    """
    try:
        with uninterrupted():
            yield
    except TSS2_Exception as failure:
        raise _error(int(failure.rc), doing, tcti, option) from failure


def _error(rc: int, doing: str, tcti: str, option: str) -> TpmMtlsError:
    error = tpm_error(rc, doing=doing, tcti=tcti, option=option)
    if option == _LOCKOUT and isinstance(error, AuthorizationError):
        error.hint = f"one wrong value blocks it for LOCKOUT_RECOVERY seconds ({_SHOWS}); then {error.hint}"
    elif option == _LOCKOUT and isinstance(error, TpmLockoutError):
        return TpmLockoutError(
            f"cannot {doing}: a wrong lockout authorization was tried, which blocks that one ({describe(rc)})",
            hint=f"wait for LOCKOUT_RECOVERY seconds, counted while the TPM has power: {_SHOWS} shows how many",
            rc=rc,
        )
    return error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets an interrupt wait until the block is done; only signals that Python itself would handle.

    A command that a signal cuts short leaves libtss2 in the middle of an answer (its device and cmd transports take
    EINTR for a failure), and an object that was just loaded would be lost. So the signals are blocked in this thread;
    and because another thread may take them, while Python runs its handlers in the main thread all the same, the
    handlers wait too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no handler runs here
        return
    arrived: list[int] = []
    handlers = {number: handler for number in _INTERRUPTS if callable(handler := signal.getsignal(number))}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for waiting in arrived:
            handlers[signal.Signals(waiting)](waiting, None)


def public_area(public: TPM2B_PUBLIC) -> PublicArea:
    """The TPM's answer as one of our own values."""
    return parse_public_area(bytes(public.publicArea.marshal()))


def sized_public(data: bytes) -> TPM2B_PUBLIC:
    """A marshalled TPMT_PUBLIC as commands take it."""
    return TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(data)[0])


def says_damaged(error: TpmRefusedError) -> bool:
    """Whether the TPM refused a parameter because its structure is damaged."""
    return error.rc & 0xBF in _DAMAGED
