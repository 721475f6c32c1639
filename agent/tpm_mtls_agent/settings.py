"""How the agent is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_agent.duties.settings import DutySettings


@dataclass(frozen=True)
class Limits:
    """What the agent grants; times in seconds.

    Attributes:
        connections: at once, of all clients together; more wait in the kernel.
        requests_each: at once, of one account (`tpm_mtls_agent.requests.peers.Peer.account`); more are refused. As many
            of its connections again may be answered and not closed yet.
        request: from the connection to the end of its request.
        answer: for a client to take the answer, and to close the connection.
        queue: for a request to wait for the TPM. 256 sets at a slow chip's half a second each take as long.
        wrong_names: how many an account may ask for in one go: programs look whether a secret is there yet when they
            start.
        wrong_name_interval: for each one after these: 8,640 guesses a day. A program that looks every ten seconds is
            never held up.
        wrong_name_wait: for a request to wait because its account asked for too many.
        ending: for the requests in work when the agent is told to end.
        stuck: for the TPM to work on one request, before the watchdog is no longer fed.
    """

    connections: int = 1024
    requests_each: int = 256
    request: float = 5.0
    answer: float = 5.0
    queue: float = 150.0
    wrong_names: int = 20
    wrong_name_interval: float = 10.0
    wrong_name_wait: float = 10.0
    ending: float = 60.0
    stuck: float = 120.0


@dataclass(frozen=True)
class Settings:
    """What the agent needs to know.

    Attributes:
        socket: where it listens, unless systemd passes a socket.
        audit: the audit log.
        lock: held while it runs; one agent for each state folder.
        group: whose members may connect; see `tpm_mtls_agent.requests.listening.bound_socket`.
        allow_list: who may ask for what; none for whoever knows a name.
        limits: what it grants.
        exclusive: whether the TPM takes one connection at a time (`tpm_mtls_agent.worker.StoreWorker`).
        duties: what it does by the clock; none for nothing.
    """

    socket: Path
    audit: Path
    lock: Path
    group: str | None = None
    allow_list: Path | None = None
    limits: Limits = field(default_factory=Limits)
    exclusive: bool = True
    duties: DutySettings | None = None
