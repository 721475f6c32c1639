"""Why SIGTERM came: libtss2 lets the kernel send it when its thread ends, which need not be the program's end.

libtss2's ``cmd`` transport ends its program with SIGTERM and waits for it (tcti_cmd_finalize). It also asks the kernel
for SIGTERM at its own death (PR_SET_PDEATHSIG), but by that Linux means the *thread* that started us (prctl(2)): a web
server that loads its key in a thread of a pool would be without a TPM as soon as that thread ends. The two signals look
alike.
"""

from __future__ import annotations

import os


class Parent:
    """The program that started this process, and the thread of it that did."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._thread = self._find()

    def only_a_thread_ended(self) -> bool:
        """Whether the thread has ended, and the program goes on: then we are another thread's child now.

        False where that is not to be found out (a kernel without CONFIG_PROC_CHILDREN, a /proc that hides others).
        """
        before, self._thread = self._thread, self._find()
        return None not in {before, self._thread} and before != self._thread and os.getppid() == self._pid

    def _find(self) -> str | None:
        folder = f"/proc/{self._pid}/task"
        try:
            for thread in [str(self._pid), *os.listdir(folder)]:  # noqa: PTH208 - pathlib is slow to import
                if str(os.getpid()) in _children(f"{folder}/{thread}/children"):
                    return thread
        except OSError:
            return None
        return None


def _children(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
            return file.read().split()
    except FileNotFoundError:  # the thread ended meanwhile, or the kernel does not say
        return []
