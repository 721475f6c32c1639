"""A CA with lists of what it has revoked, a device of it, and a server that looks at the lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.clock import Clock
from support.crls import Lists
from support.revoking import V1_2
from tpm_mtls.tls import IdentityContext, server_context

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.identity import Identity


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def lists(ca: TestCa) -> Lists:
    made = Lists(ca)
    made.publish()
    return made


@pytest.fixture
def device(ca: TestCa) -> Identity:
    return ca.software_identity("device")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(ca: TestCa, lists: Lists, clock: Clock) -> IdentityContext:
    identity = ca.software_identity("localhost")
    return server_context(identity, minimum_version=V1_2, crl=lists.path, clock=clock)
