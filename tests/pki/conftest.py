"""A CA for each test, copied from one that is made once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.authority import PASSPHRASE, MovableClock, copy_ca, make_ca
from support.reference_device import ReferenceDevice
from support.tpm import SimulatedTpm
from tpm_mtls.cli import run
from tpm_mtls_pki.authority import Authority, open_authority
from tpm_mtls_pki.issuance import Registrar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tpm_mtls_pki.profiles import Issuer


@pytest.fixture(scope="session")
def ca_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("template") / "ca")


@pytest.fixture(scope="session")
def template_issuer(ca_template: Path) -> Issuer:
    with open_authority(ca_template) as authority:
        return authority.unlock(PASSPHRASE)


@pytest.fixture
def ca_dir(ca_template: Path, tmp_path: Path) -> Path:
    """The folder of a CA."""
    return copy_ca(ca_template, tmp_path / "ca")


@pytest.fixture
def authority(ca_dir: Path) -> Iterator[Authority]:
    """That CA, open."""
    with open_authority(ca_dir) as opened:
        yield opened


@pytest.fixture
def clock() -> MovableClock:
    """The CA's clock."""
    return MovableClock()


@pytest.fixture
def registrar(authority: Authority, template_issuer: Issuer, clock: MovableClock) -> Registrar:
    """That CA, unlocked, with that clock."""
    return Registrar(authority, template_issuer, clock)


@pytest.fixture(scope="session")
def genuine_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedTpm]:
    """A TPM with EK certificates, for many tests: whoever uses it leaves nothing in it."""
    tpm = SimulatedTpm(tmp_path_factory.mktemp("genuine"), ek_certificates=True)
    try:
        yield tpm
        tpm.assert_nothing_leaked()
    finally:
        tpm.stop()


@pytest.fixture
def device(request: pytest.FixtureRequest, genuine_tpm: SimulatedTpm) -> Iterator[ReferenceDevice]:
    """A device with that TPM and new keys; its parameter is the algorithm of the endorsement key that it shows."""
    with ReferenceDevice(genuine_tpm.tcti, algorithm=getattr(request, "param", "rsa")) as made:
        yield made


@pytest.fixture
def pki(ca_dir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command on the CA; returns its JSON answer, or after ``status`` what it wrote to stderr."""

    def call(*arguments: str | Path, status: int = 0, text: bool = False) -> Any:  # noqa: ANN401 - JSON
        capfd.readouterr()
        command = ["pki", *map(str, arguments), "--ca-dir", str(ca_dir), *([] if text else ["--json"])]
        assert run(command) == status
        out, err = capfd.readouterr()
        if status:
            return err
        return out if text else json.loads(out)

    return call
