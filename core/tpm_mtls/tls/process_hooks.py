"""What a process owes the keys in a TPM: flush its own when it ends, and never flush its parent's after a fork."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import TYPE_CHECKING, Protocol

from tpm_mtls.openssl import provider

if TYPE_CHECKING:
    from collections.abc import Iterator


class Key(Protocol):
    """A key in a TPM, as `tpm_mtls.tls.own_key.OwnKey` is one."""

    def release(self) -> None:
        """Flushes it."""

    def after_fork(self) -> None:
        """Abandons it: it is the parent's."""


class Holder(Protocol):
    """A TLS context: as long as it lives, its key may be touched."""

    @property
    def own_key(self) -> Key | None:
        """Its key; none where it has none."""


_living: weakref.WeakSet[Holder] = weakref.WeakSet()
_workers: set[int] = set()


def watch(holder: Holder) -> None:
    """From now on the key of ``holder`` is released at the interpreter's exit, and abandoned in forked children."""
    _living.add(holder)


def key_was_loaded() -> None:
    """In a worker of multiprocessing, which ends without the interpreter's exit: releases keys before that."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or os.getpid() in _workers:
        return
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only where multiprocessing is loaded already

    _workers.add(os.getpid())
    Finalize(None, _release_keys, exitpriority=0)


def _release_keys() -> None:
    for key in _keys():
        key.release()


def _after_fork() -> None:
    provider.after_fork()
    for key in _keys():
        key.after_fork()


def _keys() -> Iterator[Key]:
    """The keys, each as long as it is looked at: its holder cannot be freed meanwhile, in another thread maybe."""
    for holder in list(_living):
        if holder.own_key is not None:
            yield holder.own_key


atexit.register(_release_keys)
os.register_at_fork(after_in_child=_after_fork)
