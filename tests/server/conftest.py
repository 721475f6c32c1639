"""A CA, a device and a backend for each test of the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from support.attesting import AttestingDevice
from support.backend import BackendThread
from support.clock import Clock
from support.device_ca import DeviceCa
from support.https import HttpsClient
from tpm_mtls_server.logs import LOGGER
from tpm_mtls_server.registry import Registry
from tpm_mtls_server.settings import Limits, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tpm_mtls.identity import Identity


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that ran in this process leaves no handler that writes to its captured, closed stderr."""
    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)
    LOGGER.propagate = propagate


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCa:
    """A CA that has published a CRL without entries."""
    ca = DeviceCa(tmp_path / "ca")
    ca.publish_crl()
    return ca


@pytest.fixture
def device(ca: DeviceCa) -> Identity:
    return ca.device()


@pytest.fixture
def sensor(ca: DeviceCa) -> AttestingDevice:
    """A device with a TPM."""
    return AttestingDevice(ca)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """The registry, as an operator opens it beside the running server."""
    with Registry.open(f"sqlite:///{tmp_path}/telemetry.db") as registry:
        yield registry


@pytest.fixture
def make_backend(
    ca: DeviceCa, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., BackendThread]]:
    """Starts backends in this process; keyword arguments replace settings."""
    caplog.set_level(logging.INFO, logger="tpm_mtls_server")
    started: list[BackendThread] = []

    def make(*, limits: Limits | None = None, **changes: object) -> BackendThread:
        settings: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "identity": ca.server(),
            "crl": ca.crl_file,
            "database": f"sqlite:///{tmp_path}/telemetry.db",
            "limits": limits or Limits(),
        }
        backend = BackendThread(Settings(**settings | changes), clock=clock)
        started.append(backend)
        return backend

    yield make
    for backend in started:
        backend.stop()


@pytest.fixture
def backend(make_backend: Callable[..., BackendThread]) -> BackendThread:
    return make_backend()


@pytest.fixture
def connect() -> Iterator[Callable[[int, Identity], HttpsClient]]:
    """Opens kept connections as a device."""
    opened: list[HttpsClient] = []

    def make(port: int, identity: Identity) -> HttpsClient:
        client = HttpsClient(port, identity)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(backend: BackendThread, sensor: AttestingDevice, connect: Callable[..., HttpsClient]) -> HttpsClient:
    """A connection of `sensor`."""
    return connect(backend.port, sensor.identity)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    """What the backend in this process logged about one event."""

    def lines(event: str) -> list[dict[str, Any]]:
        return [vars(record)["facts"] for record in caplog.records if record.getMessage() == event]

    return lines
