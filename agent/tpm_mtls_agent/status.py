"""What an agent does, seen from outside: the socket answers no question about itself or the names it knows."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tpm_mtls.errors import IdentityError
from tpm_mtls_agent.duties.record import DutiesRecord, load_duties
from tpm_mtls_agent.health import load_health, status_line
from tpm_mtls_agent.requests.listening import Listener, listener
from tpm_mtls_agent.storage.opening import read_statistics
from tpm_mtls_agent.storage.secrets_folder import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls_agent.storage.table import Statistics


@dataclass(frozen=True)
class Status:
    """Who listens, and what is kept.

    Attributes:
        socket: where.
        listener: who listens there; none if nobody does.
        statistics: how much is kept where; none if this user may not know, or nothing was ever kept.
        health: the last health report; none if there was none since the machine started.
        duties: what the agent's duties came to last; none as above.
    """

    socket: Path
    listener: Listener | None
    statistics: Statistics | None
    health: HealthReport | None = None
    duties: DutiesRecord | None = None

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
        if self.health is not None:
            found["health"] = msgspec.to_builtins(self.health)
        if self.duties is not None:
            found["duties"] = msgspec.to_builtins(self.duties)
        return found


def read_status(socket: Path, state_dir: Path, run_dir: Path) -> Status:
    """The status of the agent at ``socket`` with the state folder ``state_dir``, which shows its duties in ``run_dir``.

    Raises:
        StorageError: this user may not find out whether anybody listens, or the folder cannot be read.
        IdentityError: the folder is damaged.
    """
    known = os.access(state_dir / FOLDER, os.R_OK | os.X_OK)
    health, duties = None, None
    with suppress(IdentityError):  # of another version: the agent writes it anew
        health = load_health(run_dir)
    with suppress(IdentityError):
        duties = load_duties(run_dir)
    return Status(socket, listener(socket), read_statistics(state_dir) if known else None, health, duties)


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
    if status.health is not None:
        lines.append(f"{status_line(status.health)} ({_date(status.health.time)})")
    if status.duties is not None:
        lines += _describe_duties(status.duties)
    return "\n".join(lines)


def _describe_duties(duties: DutiesRecord) -> list[str]:
    lines = [duties.life_cycle_text] if duties.life_cycle_text else []
    if duties.verdict is not None and duties.attested is not None:
        verdict = duties.verdict
        word = "trusts" if verdict.trusted else "does not trust"
        reason = f": {verdict.reason}" if verdict.reason and not verdict.trusted else ""
        lines.append(f"the backend {word} what was booted, {verdict.state} ({_date(duties.attested)}){reason}")
    for name, outcome in (("backend", duties.backend), ("renewal", duties.renewal)):
        if outcome is not None:
            lines.append(f"{name}: {outcome.error or 'well'} ({_date(outcome.time)})")
    if duties.renews_at is not None:
        lines.append(f"the certificate is renewed from {_date(duties.renews_at)} on")
    return lines


def _date(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
