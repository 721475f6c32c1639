"""Time limits: how long one request may take, and a socket that keeps to it byte by byte."""

from __future__ import annotations

import math
import ssl
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer


@dataclass(frozen=True)
class Timeout:
    """Seconds that a request may take; each is finite.

    A name's resolution and the TPM's own signature cannot be interrupted; what follows them counts their time.

    Attributes:
        connect: for the TCP connection and the TLS handshake together, the TPM's signature included (a slow chip takes
            0.3 s).
        read: between two pieces of what is sent or received.
        total: for the whole request, from the name's resolution to the last byte of the answer.
    """

    connect: float = 10.0
    read: float = 30.0
    total: float = 120.0

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise UsageError(f"the {name} timeout is not a positive number of seconds", hint="for example 10")

    @classmethod
    def within(cls, seconds: float) -> Timeout:
        """At most ``seconds`` in all, and the usual limits of the parts where they are shorter.

        Raises:
            UsageError: ``seconds`` is not a positive number.
        """
        return cls(connect=min(cls.connect, seconds), read=min(cls.read, seconds), total=seconds)


class Budget:
    """The time that is left of a `Timeout`, from now on."""

    def __init__(self, timeout: Timeout, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout = timeout
        self._clock = clock
        self._end = clock() + timeout.total

    def is_spent(self) -> bool:
        """Whether the total time is over."""
        return self._clock() >= self._end

    def left(self) -> float:
        """Seconds, more than none.

        Raises:
            TimeoutError: the total time is over.
        """
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("the time is over")
        return left

    def next_piece(self) -> float:
        """Seconds for the next piece of what is sent or received.

        Raises:
            TimeoutError: the total time is over.
        """
        return min(self.timeout.read, self.left())

    def connecting(self) -> Budget:
        """The part of it for TCP and TLS together.

        Raises:
            TimeoutError: the total time is over.
        """
        return Budget(replace(self.timeout, total=min(self.timeout.connect, self.left())), clock=self._clock)


_budget: ContextVar[Budget] = ContextVar("tpm_mtls_client_budget")


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Lets the sockets that this thread (or task) uses inside the block keep to ``budget``."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def current_budget() -> Budget:
    """The budget of the request that is being made.

    Raises:
        LookupError: none is; the caller is a mistake in this package.
    """
    return _budget.get()


class _TimedSocket(ssl.SSLSocket):
    def send(self, data: Buffer, flags: int = 0) -> int:
        self._limit()
        return super().send(data, flags)

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        self._limit()
        return super().recv_into(buffer, nbytes, flags)

    def _limit(self) -> None:
        budget = _budget.get(None)
        if budget is not None:
            self.settimeout(budget.next_piece())


def time_sockets(context: ssl.SSLContext) -> None:
    """Makes ``context``'s sockets keep to the budget of the request that uses them (see `spending`).

    A socket's own time-out starts anew with every piece, so that a peer that sends or takes one byte at a time could
    go on for ever. Outside `spending` the sockets are what they were.
    """
    if not issubclass(context.sslsocket_class, _TimedSocket):
        context.sslsocket_class = type("TimedSocket", (_TimedSocket, context.sslsocket_class), {})
