"""What goes round a handshake with an own key: it is counted, takes its turn, and says why the key did not sign."""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from typing import TYPE_CHECKING

from tpm_mtls.openssl import contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tpm_mtls.tls.own_key import OwnKey


@contextlib.contextmanager
def counted(context: ssl.SSLContext) -> Iterator[AbstractContextManager[object] | None]:
    """A step of a handshake, whose failure is `explained`; yields what to hold during it, if anything."""
    own = own_key(context)
    if own is None:
        yield None
        return
    own.begin_handshake()
    try:
        with explained(context):
            yield own.turn
        contexts.forget_errors()
    finally:
        own.end_handshake()


@contextlib.contextmanager
def explained(context: ssl.SSLContext) -> Iterator[None]:
    """Gives an `ssl.SSLError` a `TpmMtlsError` as its cause if the own key of ``context`` is to blame."""
    try:
        yield
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise
    except ssl.SSLError as error:
        own = own_key(context)
        if own is None:
            raise
        own.explain(error)


def own_key(context: ssl.SSLContext) -> OwnKey | None:
    """The own key of ``context``; none for one that is not ours, which a server-name callback may have chosen."""
    return getattr(context, "own_key", None)


def following(context: ssl.SSLContext) -> AbstractContextManager[object]:
    """To be held while a connection takes over what ``context`` has, which a server-name callback has chosen."""
    follow = getattr(context, "following", contextlib.nullcontext)
    held: AbstractContextManager[object] = follow()
    return held


def in_turns(
    connection: ssl.SSLSocket, handshake: Callable[[], None], turn: AbstractContextManager[object], *, block: bool
) -> None:
    """A handshake of which every step holds ``turn``, and no waiting for the peer: that may be another thread's turn.

    Raises:
        TimeoutError: the socket's timeout has passed.
        OSError: as the handshake.
    """
    timeout = connection.gettimeout()
    if timeout == 0 and not block:
        with turn:
            handshake()
        return
    deadline = time.monotonic() + timeout if timeout else None
    connection.settimeout(0)
    try:
        while (wanted := _step(handshake, turn)) is not None:
            poll = select.poll()
            poll.register(connection, wanted)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not poll.poll(left):
                raise TimeoutError("the handshake timed out")
    finally:
        connection.settimeout(timeout)


def _step(handshake: Callable[[], None], turn: AbstractContextManager[object]) -> int | None:
    try:
        with turn:
            handshake()
    except ssl.SSLWantReadError:
        return select.POLLIN
    except ssl.SSLWantWriteError:
        return select.POLLOUT
    return None
