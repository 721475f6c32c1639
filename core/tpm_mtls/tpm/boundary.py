"""Where exceptions, structures and signals cross between tpm2-pytss and the project."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC

from tpm_mtls.errors import AuthorizationError
from tpm_mtls.response_codes import tpm_error
from tpm_mtls.structures import PublicArea, parse_public_area

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def translated(doing: str, tcti: str, *, option: str = "--auth") -> Iterator[None]:
    """The one place where exceptions of tpm2-pytss become errors of the project.

    Args:
        doing: what the command is for, after "cannot".
        tcti: where the TPM is.
        option: how a user gives the authorization value that the command needs, for the hint.
    """
    try:
        yield
    except TSS2_Exception as failure:
        error = tpm_error(int(failure.rc), doing=doing, tcti=tcti)
        if isinstance(error, AuthorizationError):
            error.hint = error.hint.replace("--auth", option)
        raise error from failure


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets an interrupt wait until the block is done; only signals that Python itself would handle."""
    handled = [number for number in _INTERRUPTS if callable(signal.getsignal(number))]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def public_area(public: TPM2B_PUBLIC) -> PublicArea:
    """The TPM's answer as one of our own values."""
    return parse_public_area(bytes(public.publicArea.marshal()))


def sized_public(data: bytes) -> TPM2B_PUBLIC:
    """A marshalled TPMT_PUBLIC as commands take it."""
    return TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(data)[0])
