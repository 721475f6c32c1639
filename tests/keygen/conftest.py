"""A CA for each test that needs a real one, copied from one that is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.attested import AttestedBench
from support.authority import PASSPHRASE, copy_ca, est_host, make_ca
from tpm_mtls_pki.authority import open_authority
from tpm_mtls_pki.clock import utc_now
from tpm_mtls_pki.issuance import Registrar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture(scope="session")
def ca_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("template") / "ca")


@pytest.fixture
def registrar(ca_template: Path, tmp_path: Path) -> Iterator[Registrar]:
    """A CA."""
    with open_authority(copy_ca(ca_template, tmp_path / "ca")) as authority:
        yield Registrar(authority, authority.unlock(PASSPHRASE), utc_now)


@pytest.fixture
def attested(tpm: SimulatedTpm, registrar: Registrar, tmp_path: Path) -> Iterator[AttestedBench]:
    """A device whose TPM has no certificate, but is on the CA's list."""
    with est_host(registrar) as host:
        bench = AttestedBench(tpm, registrar, host, tmp_path / "state")
        bench.allow()
        yield bench


@pytest.fixture
def certified(make_tpm: Callable[..., SimulatedTpm], registrar: Registrar, tmp_path: Path) -> Iterator[AttestedBench]:
    """A device whose TPM has certificates; the CA does not know their maker yet."""
    with est_host(registrar) as host:
        yield AttestedBench(make_tpm(ek_certificates=True), registrar, host, tmp_path / "state")
