"""A CA for each test, copied from one that is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.authority import PASSPHRASE, MovableClock, copy_ca, make_ca
from tpm_mtls_pki.authority import Authority, open_authority
from tpm_mtls_pki.issuance import Registrar

if TYPE_CHECKING:
    from collections.abc import Iterator
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
