"""A TPM's own quotes, judged as the backend judges them: as the TPM is measured into, and as it restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.event_logs import boot, recorded, recorded_bytes
from support.judgements import Case
from support.quotes import NONCE, evidence_of
from tpm_mtls.event_log.components import PCR_COMPONENTS
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from support.judgements import Device
    from support.tpm import SimulatedTpm
    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls.structures import PublicArea
    from tpm_mtls_server.attestation import Judgement


class SavedKey(NamedTuple):
    """An attestation key that outlives its TPM's power."""

    public: PublicArea
    private: bytes


@pytest.fixture
def key(tpm: SimulatedTpm) -> SavedKey:
    with open_tpm(tpm.tcti) as opened, opened.srk.create_attestation_key() as made:
        return SavedKey(made.public, made.private)


def quote(tpm: SimulatedTpm, key: SavedKey) -> QuoteEvidence:
    """What the device sends."""
    with open_tpm(tpm.tcti) as opened, opened.load(SRK_HANDLE, key.public, key.private, None) as loaded:
        found = opened.attestation.quote(loaded, NONCE, {"sha256": range(16)})
        values = {"sha256": opened.pcrs.read("sha256", range(24))}
    return evidence_of(found.attest, found.signature, key.public, values)


def case(machine: Device, tpm: SimulatedTpm, key: SavedKey, last: Judgement | None = None) -> Case:
    """A quote of this moment, after the ``last`` one."""
    found = Case(quote(tpm, key), machine.facts(enrolled=frozenset({key.public.name})))
    return found if last is None else found.known(baseline=last.seen, clock=last.clock)


def test_each_of_the_sixteen_pcrs_is_named_when_something_is_measured_into_it(
    machine: Device, tpm: SimulatedTpm, key: SavedKey
) -> None:
    last = case(machine, tpm, key).judge()
    assert last.trusted
    for pcr in range(16):
        assert case(machine, tpm, key, last).judge().trusted
        tpm.tool("tpm2_pcrextend", f"{pcr}:sha256={'ab' * 32}")
        judgement = case(machine, tpm, key, last).judge()
        assert (judgement.trusted, judgement.check) == (False, 9)
        assert judgement.reason.startswith(f"PCR {pcr} ({PCR_COMPONENTS[pcr]}) differs from the baseline")
        last = judgement


def test_a_recorded_boot_passes_until_something_is_measured_after_it(
    machine: Device, tpm: SimulatedTpm, key: SavedKey
) -> None:
    log = recorded("uefi-secureboot")
    boot(tpm, log)
    logs = {"event_log": recorded_bytes("uefi-secureboot")}
    first = case(machine, tpm, key).sent(**logs).judge()
    assert first.trusted
    boot(tpm, log)
    rebooted = case(machine, tpm, key, first).sent(**logs).judge()
    assert rebooted.trusted, rebooted.text
    tpm.tool("tpm2_pcrextend", f"7:sha256={'ab' * 32}")
    hidden = case(machine, tpm, key, rebooted).sent(**logs).judge()
    assert (hidden.check, hidden.reason) == (8, "the event log does not lead to the quoted PCR 7 (Secure Boot)")
    without = case(machine, tpm, key, rebooted).judge()
    assert (without.check, without.reason.partition(" differs")[0]) == (9, "PCR 7 (Secure Boot)")
    assert without.differences[-1] == "  no event log to explain it"


def test_a_quote_from_before_the_reboot_is_no_use_after_it(machine: Device, tpm: SimulatedTpm, key: SavedKey) -> None:
    """Even for somebody to whom the backend gave the same nonce again."""
    earlier = case(machine, tpm, key)
    tpm.restart()
    later = case(machine, tpm, key).judge()
    assert later.trusted
    assert earlier.known(clock=later.clock).judge().reason == "the TPM's reset counter fell by 1"


def test_the_clock_goes_on_after_reboot_and_power_cut(machine: Device, tpm: SimulatedTpm, key: SavedKey) -> None:
    """Its counters are obfuscated: nobody has reset a new TPM a thousand times."""
    first = case(machine, tpm, key).judge()
    tpm.tool("tpm2_shutdown", "-c")
    tpm.restart()
    rebooted = case(machine, tpm, key, first).judge()
    tpm.restart()
    cut = case(machine, tpm, key, rebooted).judge()
    assert first.trusted
    assert rebooted.trusted
    assert cut.trusted
    clocks = [each.clock for each in (first, rebooted, cut) if each.clock is not None]
    assert [each.safe for each in clocks] == [True, True, False]
    assert clocks[0].reset_count > 1000
    assert [(each.reset_count - clocks[0].reset_count) % 2**32 for each in clocks] == [0, 1, 2]
