"""All that the server answers, put together over one database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls_server.backend import Backend
from tpm_mtls_server.database import Database
from tpm_mtls_server.endpoints.attestation import AttestationApi
from tpm_mtls_server.endpoints.devices import DeviceApi
from tpm_mtls_server.endpoints.gate import Gate
from tpm_mtls_server.endpoints.health import HealthApi
from tpm_mtls_server.endpoints.routes import Routes
from tpm_mtls_server.metrics import Metrics
from tpm_mtls_server.operators.api import OperatorApi
from tpm_mtls_server.registry import Registry
from tpm_mtls_server.registry.attestations import Attestations
from tpm_mtls_server.registry.contacts import Contacts
from tpm_mtls_server.telemetry import TelemetryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tpm_mtls_server.attestation import AttestationTrust
    from tpm_mtls_server.revocation import CrlFile
    from tpm_mtls_server.settings import Settings


class Endpoints:
    """The endpoints and what they share; ``backend`` answers requests."""

    def __init__(
        self,
        settings: Settings,
        *,
        crl: CrlFile | None,
        trust: AttestationTrust,
        own_expiry: Callable[[], datetime],
        clock: Callable[[], datetime],
    ) -> None:
        """Opens the database.

        Raises:
            UsageError: its URL is wrong, or attestation is required for what it cannot be.
            StateError: it is of another version.
            StorageError: it cannot be opened or written to.
        """
        self._database = Database(settings.database)
        try:
            self._make(settings, crl, trust, own_expiry, clock)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Finishes what runs, and closes the database; blocks."""
        self._attestation.close()
        self._database.close()

    def _make(
        self,
        settings: Settings,
        crl: CrlFile | None,
        trust: AttestationTrust,
        own_expiry: Callable[[], datetime],
        clock: Callable[[], datetime],
    ) -> None:
        limits, metrics = settings.limits, Metrics()
        registry = Registry(self._database)  # first: it makes the tables
        attestations = Attestations(self._database)
        device = DeviceApi(
            database=self._database,
            store=TelemetryStore(self._database),
            crl=crl,
            own_expiry=own_expiry,
            clock=clock,
            body_timeout=limits.body,
        )
        self._attestation = AttestationApi(
            attestations=attestations,
            trust=trust,
            crl=crl,
            lifetime=settings.attestation_lifetime,
            metrics=metrics,
            clock=clock,
            body_timeout=limits.evidence,
        )
        health = HealthApi(attestations=attestations, metrics=metrics, clock=clock, body_timeout=limits.body)
        operator = OperatorApi(registry, metrics, own_expiry=own_expiry, clock=clock, body_timeout=limits.body)
        routes = Routes([*device.routes(), *self._attestation.routes(), *health.routes(), *operator.routes()])
        self.backend = Backend(
            routes=routes,
            contacts=Contacts(self._database),
            gate=Gate.of(
                settings.require_attestation, known=routes.device_paths(), lifetime=settings.attestation_lifetime
            ),
            crl=crl,
            metrics=metrics,
            clock=clock,
        )
