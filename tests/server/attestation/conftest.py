"""A device with an attestation key, and the CA that certified it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.device_ca import DeviceCa
from support.judgements import Device

if TYPE_CHECKING:
    from support.judgements import Case


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Nothing that a test does changes it."""
    return Device(DeviceCa(tmp_path_factory.mktemp("ca")))


@pytest.fixture(scope="session")
def good(machine: Device) -> Case:
    """A quote that passes."""
    return machine.case()
