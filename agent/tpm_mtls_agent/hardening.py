"""What a process that handles secrets gives up."""

from __future__ import annotations

import os
import resource

_FILES = 4096  # connections, and some to spare


def harden() -> None:
    """New files are for this user alone, no core is dumped, and there are descriptors enough for all connections.

    A limit of 1 byte, not 0: the kernel ignores 0 where cores are piped to a program, and then 1 alone stops the dump
    (core(5); fs/coredump.c, "RLIMIT_CORE is set to 1").
    """
    os.umask(0o077)
    _, hardest = resource.getrlimit(resource.RLIMIT_CORE)
    least = _least(1, hardest)
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_least(_FILES, hard), hard))


def _least(wanted: int, limit: int) -> int:
    return wanted if limit == resource.RLIM_INFINITY else min(wanted, limit)
