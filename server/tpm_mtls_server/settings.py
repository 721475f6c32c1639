"""What the server's operator chooses, and the limits that protect it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from tpm_mtls.tls.listener import HANDSHAKE_THREADS
from tpm_mtls.tls.transport import TlsTimeouts

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity

CONNECTIONS = 256
"""Connections at once. Each takes one of the usual 1024 file descriptors and about 100 kB; more wait in the kernel's
queue until one ends."""


ATTESTATION_LIFETIME = timedelta(hours=24)
"""How long a quote counts that passed: a device that sends one an hour may miss some, and is noticed within a day."""


@dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        connections: at once, of all clients together.
        handshake_threads: handshakes at once.
        body: seconds that a request's body may take.
        evidence: seconds that a quote with its logs may take, 8 MiB at most.
        idle: seconds from a connection's start, or from an answer, to the end of the next request's head.
        drain: seconds that running requests get when the server stops.
        tls: how long a peer may take below HTTP.
    """

    connections: int = CONNECTIONS
    handshake_threads: int = HANDSHAKE_THREADS
    body: float = 10
    evidence: float = 60
    idle: float = 15
    drain: float = 10
    tls: TlsTimeouts = field(default_factory=TlsTimeouts)


@dataclass(frozen=True)
class Settings:
    """What `tpm_mtls_server.service.serve` needs.

    Attributes:
        host: address or name to listen on.
        port: TCP port; 0 for any free one.
        identity: the server's own key and certificate; its trust is the CA of the clients.
        crl: file with the CRLs of that CA; none accepts revoked certificates until they expire.
        database: SQLAlchemy URL of telemetry and registry.
        require_attestation: paths that only attested devices may use.
        attestation_lifetime: how long a quote counts that passed.
        tcti: where the TPM is, for a TPM key.
        relay: whether it is used through the relay; see `tpm_mtls.tls.server_context`.
        authorization: the key's authorization value.
        tls12: whether TLS 1.2 is accepted too.
        limits: what clients may take.
    """

    host: str
    port: int
    identity: Identity
    crl: Path | None
    database: str
    require_attestation: tuple[str, ...] = ()
    attestation_lifetime: timedelta = ATTESTATION_LIFETIME
    tcti: str | None = None
    relay: RelayUse | None = None
    authorization: Secret | None = None
    tls12: bool = False
    limits: Limits = field(default_factory=Limits)
