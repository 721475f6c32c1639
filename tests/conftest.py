"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import logging
import platform
import signal
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.tpm import SimulatedTpm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOT_MEASURED = {"e2e", "keygen", "scripts", "tutorial"}
"""The folders whose tests start programs by the dozen, many of them to be killed."""

_TPMS_BEFORE: set[str] = set()
"""Where this process's simulated TPMs were: its connection to one of them would be taken for that to another there."""


def pytest_configure() -> None:
    # a script's background job ignores Ctrl-C, and so would the programs that the tests start and interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    # what all tests share is never garbage: not to look at it makes each collection 0.1 s shorter
    gc.collect()
    gc.freeze()


def pytest_report_header() -> list[str]:
    swtpm = subprocess.run(["swtpm", "--version"], capture_output=True, text=True, check=False).stdout
    return [f"python {platform.python_version()}, {ssl.OPENSSL_VERSION}", swtpm.split("\n", maxsplit=1)[0]]


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Coverage takes a program longer to begin than its own work; what these run is measured by other tests."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(Path(__file__).parent).parts[0] in _NOT_MEASURED:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(autouse=True)
def _runtime_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What relays remember for later ones, they remember for this test only."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """What a command has set for its own process (``--debug``) does not stay for the tests that come after it."""
    loggers = [logging.getLogger(name) for name in ("tpm_mtls", "tpm_mtls_agent", "tpm_mtls_pki", "tpm_mtls_server")]
    before = [(each.level, list(each.handlers)) for each in loggers]
    yield
    for each, (level, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:] = handlers


@pytest.fixture
def make_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., SimulatedTpm]]:
    """Makes running simulated TPMs; at the end of the test none may hold leaked objects or sessions."""
    made: list[SimulatedTpm] = []

    def make(*, ek_certificates: bool = False) -> SimulatedTpm:
        tpm = SimulatedTpm(tmp_path_factory.mktemp("tpm"), ek_certificates=ek_certificates)
        while tpm.tcti in _TPMS_BEFORE:
            tpm.stop()
            tpm = SimulatedTpm(tmp_path_factory.mktemp("tpm"), ek_certificates=ek_certificates)
        _TPMS_BEFORE.add(tpm.tcti)
        made.append(tpm)
        return tpm

    yield make
    try:
        for tpm in made:
            tpm.assert_nothing_leaked()
    finally:
        for tpm in made:
            tpm.stop()


@pytest.fixture
def tpm(make_tpm: Callable[..., SimulatedTpm]) -> SimulatedTpm:
    """A running simulated TPM without endorsement-key certificates (starts in 0.1 s)."""
    return make_tpm()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An identity folder that does not exist yet."""
    return tmp_path / "state"
