"""Every attacker of the catalogue is refused over real HTTPS; the honest device beside it is not.

Each: the numbered check in the audit log, an answer that tells nothing, no certificate.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from support.authority import est_host
from support.evidence import Certifier, new_root
from support.evil_client import ATTACKS, REFUSED, Attack
from support.evil_device import Stage, trust, trust_maker
from support.evil_keys import endorsed
from support.tpm import SimulatedTpm
from tpm_mtls_pki.clock import utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.authority import MovableClock
    from tpm_mtls_pki.issuance import Registrar


@pytest.fixture(scope="session")
def other_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedTpm]:
    """A TPM of another maker, for many tests."""
    tpm = SimulatedTpm(tmp_path_factory.mktemp("other"), ek_certificates=True)
    try:
        yield tpm
        tpm.assert_nothing_leaked()
    finally:
        tpm.stop()


@pytest.fixture(scope="session")
def maker() -> Certifier:
    """A TPM maker whose key the tests have."""
    return new_root()


@pytest.fixture
def stage(
    request: pytest.FixtureRequest,
    registrar: Registrar,
    clock: MovableClock,
    genuine_tpm: SimulatedTpm,
    other_tpm: SimulatedTpm,
    maker: Certifier,
) -> Iterator[Stage]:
    """A CA that trusts the maker of one TPM, and the maker in the test's hands; its parameter is an attack."""
    clock.now = utc_now()
    attack: Attack | None = getattr(request, "param", None)
    with est_host(registrar, **(attack.options if attack else {})) as host:
        stage = Stage(registrar, host, genuine_tpm, other_tpm, maker)
        trust_maker(registrar, genuine_tpm)
        trust(registrar, maker.certificate)
        stage.rules()
        yield stage


@pytest.mark.parametrize(
    ("stage", "attack"), [(each, each) for each in ATTACKS], indirect=["stage"], ids=map(str, ATTACKS)
)
def test_the_attacker_is_refused_and_the_honest_device_is_not(stage: Stage, attack: Attack) -> None:
    answer = attack.play(stage)
    status, body = attack.answer
    assert (answer.status, answer.body if body else None) == (status, body)
    assert len(answer.body) < 100
    assert "Set-Cookie" not in answer.headers
    assert stage.refusals() == ([] if attack.check is None else [attack.check])
    assert stage.certificates() == stage.honest
    assert stage.honest_enrollment().status == 200
    assert stage.refusals() == ([] if attack.check is None else [attack.check])


def test_the_catalogue_has_every_check() -> None:
    """Each of the nine refuses somebody; and no attack is in it twice."""
    assert {attack.check for attack in ATTACKS} == {None, *range(1, 10)}
    assert len({attack.play for attack in ATTACKS}) == len(ATTACKS)


def test_what_an_attacker_certifies_is_good_but_for_its_fault(stage: Stage) -> None:
    """The counter-proof for attacks with EK certificates: the same one without a fault enrolls."""
    assert len(endorsed(stage, stage.maker).certificates) == 2
    below = stage.maker.below("Maker Issuing CA")
    assert len(endorsed(stage, below, chain=(below.der,)).certificates) == 2


def test_refusals_cannot_be_told_apart(stage: Stage) -> None:
    """Not by a header either: whichever check it was, the attacker sees the same."""
    seen = set()
    for attack in ATTACKS:
        if attack.answer == REFUSED and not attack.options and attack.check in {1, 3, 5, 6}:
            answer = attack.play(stage)
            headers = {name: value for name, value in answer.headers.items() if name != "Date"}
            seen.add((answer.status, answer.body, str(headers)))
    assert len(seen) == 1


def test_fifty_half_open_enrollments_harm_nobody(stage: Stage) -> None:
    """From the same address, with credentials and all: an exchange that was open before them goes on, so does the next.

    What they hold is forgotten when their nonces end; nothing of it is in the store.
    """
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(stage.device())
        patient = stack.enter_context(stage.exchange(device))
        csr = device.csr(device.certify(patient.nonce().qualifying_data))
        for _ in range(50):
            attacker = stack.enter_context(stage.exchange(device))
            assert attacker.ask(device.request()).status == 200
        assert stage.certificates() == 0
        assert stage.refusals() == []
        assert patient.post(csr).status == 200
        assert stage.honest_enrollment().status == 200
