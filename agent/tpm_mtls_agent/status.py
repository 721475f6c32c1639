"""What an agent does, seen from outside: the socket answers no question about itself or the names it knows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpm_mtls_agent.listening import Listener, listener
from tpm_mtls_agent.secrets_folder import FOLDER
from tpm_mtls_agent.storage import read_statistics

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_agent.table import Statistics


@dataclass(frozen=True)
class Status:
    """Who listens, and what is kept.

    Attributes:
        socket: where.
        listener: who listens there; none if nobody does.
        statistics: how much is kept where; none if this user may not know, or nothing was ever kept.
    """

    socket: Path
    listener: Listener | None
    statistics: Statistics | None

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        found: dict[str, Any] = {"socket": str(self.socket), "listening": self.listener is not None}
        if self.listener is not None:
            found |= {"pid": self.listener.pid, "uid": self.listener.uid}
        if self.statistics is not None:
            numbers = self.statistics
            found |= {
                "secrets": numbers.secrets,
                "in_nv": numbers.in_nv,
                "in_files": numbers.in_files,
                "free_slots": numbers.free_slots,
                "nv_writes": {f"{index:#010x}": count for index, count in numbers.nv_writes.items()},
                "worn": [f"{index:#010x}" for index in numbers.worn],
            }
        return found


def read_status(socket: Path, state_dir: Path) -> Status:
    """The status of the agent at ``socket`` with the state folder ``state_dir``.

    Raises:
        StorageError: this user may not find out whether anybody listens, or the folder cannot be read.
        IdentityError: the folder is damaged.
    """
    known = os.access(state_dir / FOLDER, os.R_OK | os.X_OK)
    return Status(socket, listener(socket), read_statistics(state_dir) if known else None)


def describe(status: Status) -> str:
    """For a person."""
    who = status.listener.pid if status.listener else None
    lines = [f"process {who or 'unknown'} listens at {status.socket}"]
    if status.statistics is not None:
        numbers = status.statistics
        most = max(numbers.nv_writes.values(), default=0)
        lines += [
            f"secrets: {numbers.secrets}, {numbers.in_nv} in NV memory, {numbers.in_files} in files",
            f"free slots: {numbers.free_slots}; most writes to one NV index: {most}, worn: {len(numbers.worn)}",
        ]
    return "\n".join(lines)
