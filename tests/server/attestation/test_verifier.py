"""The nine checks in their order: what is wrong in one place fails the check that is named."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import attestation
from support.event_logs import RECORDED, recorded_bytes
from support.judgements import DEVICE, LIFETIME, NOW, Case, changed_pcr, clock_info, with_values
from support.quotes import NONCE, RECORDED_NONCE, made_quote, recorded_quote, software_key, some_values
from tpm_mtls.attestation.messages import DeviceState, Verdict, decode, encode
from tpm_mtls.event_log.components import PCR_COMPONENTS
from tpm_mtls.structures import parse_public_area
from tpm_mtls_server.attestation import Approve, IssuedNonce, Learn, Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.judgements import Device
    from tpm_mtls_server.attestation import Judgement

VALUES = some_values()
OTHER_NONCE = bytes(32)


def failed(judgement: Judgement, check: int, reason: str) -> None:
    """It is not trusted, by ``check`` and for ``reason``; and nothing is kept that a failed check vouches for."""
    assert (judgement.trusted, judgement.check, judgement.learned) == (False, check, False)
    assert reason in judgement.reason
    assert judgement.hint
    assert (judgement.clock is not None) == (check > 7)
    assert (judgement.seen is not None) == (check > 8)


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit % (len(data) * 8)).to_bytes(len(data), "big")


def test_a_good_quote_passes_and_says_what_to_keep(good: Case) -> None:
    judgement = good.judge()
    assert judgement.trusted
    assert judgement.check is None
    assert judgement.learned
    assert judgement.clock is not None
    assert (judgement.clock.milliseconds, judgement.clock.reset_count, judgement.clock.restart_count) == (1234, 5, 6)
    assert judgement.seen is not None
    assert judgement.seen.values == {pcr: VALUES["sha256"][pcr] for pcr in range(16)}
    assert judgement.seen.at == NOW
    assert "is its baseline from now on" in judgement.text


def test_of_what_was_sent_only_what_was_signed_is_kept(good: Case) -> None:
    """PCRs 16 to 23 are sent along for debugging: nobody vouches for them."""
    judgement = with_pcrs(good, changed_pcr(VALUES, 16)).judge()
    assert judgement.trusted
    assert judgement.seen is not None
    assert 16 not in judgement.seen.values


def with_pcrs(case: Case, values: Any) -> Case:  # noqa: ANN401 - values by bank and PCR
    return dataclasses.replace(case, evidence=with_values(case.evidence, values))


@pytest.mark.parametrize(
    ("change", "check", "reason"),
    [
        (lambda case: case.known(nonce=None), 1, "never gave"),
        (lambda case: case.known(device="sensor-18"), 1, "another device"),
        (lambda case: case.known(nonce=IssuedNonce(NONCE, DEVICE, NOW + LIFETIME, used=True)), 1, "used before"),
        (lambda case: case.known(nonce=IssuedNonce(NONCE, DEVICE, NOW - LIFETIME)), 1, "too late"),
        (lambda case: case.sent(nonce=OTHER_NONCE), 1, "never gave"),
        (lambda case: case.sent(certificate=None), 2, "nobody vouches"),
        (lambda case: case.sent(attestation_key=software_key().public.data), 2, "for another key"),
        (lambda case: case.sent(signature=b""), 3, "neither a TPMT_SIGNATURE nor a DER one"),
        (lambda case: case.sent(signature=case.evidence.signature[:-1]), 3, "neither a TPMT_SIGNATURE nor a DER one"),
        (lambda case: case.sent(signature=software_key().sign_as_tpm(case.evidence.attest)), 3, "did not sign"),
        (lambda case: case.sent(attest=case.evidence.attest[:-1]), 3, "did not sign"),
        (lambda case: case.sent(attest=b""), 3, "did not sign"),
        (
            lambda case: dataclasses.replace(
                case.known(nonce=IssuedNonce(OTHER_NONCE, DEVICE, NOW + LIFETIME)).sent(nonce=OTHER_NONCE)
            ),
            5,
            "the quote answers another nonce",
        ),
        (lambda case: case.sent(pcrs={}), 6, "was quoted, but not sent"),
        (lambda case: case.sent(pcrs={"sha1": {0: "00" * 20}}), 6, "the value of PCR 0 of the bank sha256 was quoted"),
        (lambda case: case.sent(event_log=b""), 8, "malformed event log"),
        (lambda case: case.sent(ima_log=b"\0"), 8, "malformed IMA list"),
        (lambda case: case.known(policy=Approve()), 9, "no operator has approved"),
        (lambda case: case.known(policy=Values(())), 9, "there are no values to hold the quote against"),
    ],
)
def test_one_wrong_thing_fails_the_check_that_it_belongs_to(
    good: Case, change: Callable[[Case], Case], check: int, reason: str
) -> None:
    failed(change(good).judge(), check, reason)


@pytest.mark.parametrize("bit", range(0, 8 * 145, 29))
def test_a_flipped_bit_of_the_quote_fails_the_signature(good: Case, bit: int) -> None:
    failed(good.sent(attest=flipped(good.evidence.attest, bit)).judge(), 3, "did not sign")


@pytest.mark.parametrize("bit", range(32, 8 * 72, 37))
def test_a_flipped_bit_of_the_signature_fails_it(good: Case, bit: int) -> None:
    failed(good.sent(signature=flipped(good.evidence.signature, bit)).judge(), 3, "")


@pytest.mark.parametrize("bit", range(0, 8 * 32, 31))
def test_a_flipped_bit_of_the_nonce_fails_it(good: Case, bit: int) -> None:
    failed(good.sent(nonce=flipped(NONCE, bit)).judge(), 1, "never gave")


@pytest.mark.parametrize(
    ("attest", "check", "reason"),
    [
        ({"magic": b"\xffTCH"}, 4, "does not come from a TPM (TPM_GENERATED_VALUE is missing)"),
        ({"kind": 0x8019}, 4, "is neither a Certify nor a Quote"),
        ({"clock": clock_info()[:-1] + b"\x02"}, 4, "malformed attestation (TPMS_ATTEST)"),
        ({"extra": NONCE[:-1]}, 5, "the quote answers another nonce"),
        ({"extra": b""}, 5, "the quote answers another nonce"),
        ({"extra": NONCE + b"\0"}, 5, "the quote answers another nonce"),
    ],
)
def test_what_a_key_signed_that_is_no_quote_for_us_is_refused(
    machine: Device, attest: dict[str, Any], check: int, reason: str
) -> None:
    """As an unrestricted key would sign it, or a TPM whom somebody else asked."""
    failed(machine.case(attest=attest).judge(), check, reason)


def test_a_certification_of_a_key_is_no_quote(machine: Device, good: Case) -> None:
    data = attestation.attest(attestation.certified(), extra=NONCE)
    failed(good.sent(attest=data, signature=machine.ak.sign_as_tpm(data)).judge(), 4, "is no quote")


@pytest.mark.parametrize("pcr", range(16))
def test_a_value_that_was_not_quoted_is_refused(good: Case, pcr: int) -> None:
    failed(with_pcrs(good, changed_pcr(VALUES, pcr)).judge(), 6, "not those that were quoted")


@pytest.mark.parametrize("pcr", range(16))
def test_a_quote_without_one_of_the_sixteen_pcrs_is_refused(machine: Device, good: Case, pcr: int) -> None:
    selection = {"sha256": [number for number in range(16) if number != pcr]}
    data, signature = made_quote(machine.ak, VALUES, selection=selection)
    case = good.sent(attest=data, signature=signature)
    failed(case.judge(), 6, f"the quote does not hold PCR {pcr} of the bank sha256")


def test_a_quote_of_another_bank_alone_is_refused(machine: Device, good: Case) -> None:
    values = {"sha1": {pcr: bytes(20) for pcr in range(16)}}
    data, signature = made_quote(machine.ak, values, selection={"sha1": range(16)})
    failed(with_pcrs(good.sent(attest=data, signature=signature), values).judge(), 6, "of the bank sha256")


@pytest.mark.parametrize("pcr", range(16))
def test_a_pcr_that_changed_is_refused_and_named(machine: Device, good: Case, pcr: int) -> None:
    """All sixteen, one at a time: genuine quotes of a machine that booted something else."""
    baseline = good.judge().seen
    judgement = machine.case(changed_pcr(VALUES, pcr)).known(baseline=baseline).judge()
    failed(judgement, 9, f"PCR {pcr} ({PCR_COMPONENTS[pcr]}) differs from the baseline of ")
    assert [each.differs.pcr for each in judgement.explanations] == [pcr]
    assert judgement.differences[0] == f"PCR {pcr} (sha256), {PCR_COMPONENTS[pcr]}, differs"
    assert VALUES["sha256"][pcr].hex() in judgement.differences[1]
    assert judgement.seen is not None
    assert judgement.seen.values != VALUES["sha256"]


@pytest.mark.parametrize("pcr", range(16))
def test_after_a_while_the_same_values_pass_and_those_that_do_not_count_may_differ(
    machine: Device, good: Case, pcr: int
) -> None:
    first = good.judge()
    known = {"baseline": first.seen, "clock": first.clock}
    later = {"attest": {"clock": clock_info(2000)}}
    judgement = machine.case(**later).known(**known).judge()
    assert judgement.trusted
    assert "booted what it should" in judgement.reason
    others = Learn(tuple(number for number in range(16) if number != pcr))
    assert machine.case(changed_pcr(VALUES, pcr), **later).known(**known, policy=others).judge().trusted


def test_a_clock_that_goes_back_fails_check_7(machine: Device, good: Case) -> None:
    first = good.judge()
    failed(good.known(clock=first.clock).judge(), 7, "stood still")
    rolled_back = machine.case(attest={"clock": clock_info(2000, resets=4)})
    failed(rolled_back.known(clock=first.clock).judge(), 7, "the TPM's reset counter fell by 1")


def test_other_firmware_of_the_tpm_is_noted(machine: Device, good: Case) -> None:
    first = good.judge()
    again = machine.case(attest={"clock": clock_info(2000), "firmware": 8}).known(
        clock=first.clock, baseline=first.seen
    )
    judgement = again.judge()
    assert judgement.trusted
    assert judgement.notes == ("the TPM's firmware is another one than at its last quote",)
    assert judgement.notes[0] in judgement.text


def test_an_approval_lets_the_next_quote_pass(machine: Device, good: Case) -> None:
    waiting = good.known(policy=Approve()).judge()
    assert (waiting.pending, waiting.check, waiting.learned) == (True, 9, False)
    assert waiting.hint.endswith(f"tpm-mtls server device approve {DEVICE}")
    later = machine.case(attest={"clock": clock_info(2000)})
    facts = {"policy": Approve(), "baseline": waiting.seen, "clock": waiting.clock}
    assert later.known(**facts).judge().trusted


def test_the_answer_to_the_device_is_a_message(machine: Device, good: Case) -> None:
    first = good.judge()
    assert first.verdict() == decode(encode(first.verdict()), Verdict)
    assert first.verdict().state is DeviceState.ATTESTED
    assert first.verdict(DeviceState.QUARANTINED).state is DeviceState.QUARANTINED
    changed = machine.case(changed_pcr(VALUES, 4)).known(baseline=first.seen).judge().verdict()
    assert (changed.trusted, changed.check, changed.state) == (False, 9, DeviceState.FAILING)
    assert changed == decode(encode(changed), Verdict)
    assert good.known(policy=Approve()).judge().verdict().state is DeviceState.PENDING


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_boot_passes_with_its_logs(good: Case, name: str) -> None:
    judgement = recorded_case(good, name).judge()
    assert judgement.trusted
    assert judgement.notes == ()
    assert judgement.seen is not None
    assert judgement.seen.event_log == recorded_bytes(name)


def recorded_case(good: Case, name: str) -> Case:
    """A recorded boot, whose attestation key an operator enrolled."""
    evidence = recorded_quote(name)
    key = parse_public_area(evidence.attestation_key)
    nonce = IssuedNonce(RECORDED_NONCE, DEVICE, NOW + LIFETIME)
    return dataclasses.replace(good, evidence=evidence).known(nonce=nonce, enrolled=frozenset({key.name}))


def test_a_recorded_boot_is_refused_when_another_one_is_expected(good: Case) -> None:
    baseline = recorded_case(good, "uefi").judge().seen
    judgement = recorded_case(good, "uefi-secureboot").known(baseline=baseline).judge()
    failed(judgement, 9, "(Secure Boot)")
    assert "Secure Boot" in judgement.reason.partition("what differs: ")[2]
    assert "boot loader" in judgement.reason.partition("what differs: ")[2]
    text = "\n".join(judgement.differences)
    assert "these differences between the two event logs explain it" in text
    assert "Secure Boot changed: Secure Boot is off → Secure Boot is on" in text
    assert judgement.verdict() == decode(encode(judgement.verdict()), Verdict)


BYTES = st.binary(max_size=300)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_no_mutated_evidence_is_trusted(good: Case, data: st.DataObject) -> None:
    """Whatever is changed of what is signed or vouches: it is refused, and nothing raises.

    What stays trusted says the same: the bare value of the signature, another spelling of the certificate's signature,
    another policy in the public area of the same key.
    """
    member = data.draw(st.sampled_from(["nonce", "attest", "signature", "attestation_key", "certificate", "pcrs"]))
    if member == "pcrs":
        pcr, value = data.draw(st.integers(0, 15)), data.draw(st.binary(min_size=20, max_size=64)).hex()
        case = good.sent(pcrs={"sha256": {**good.evidence.pcrs["sha256"], pcr: value}})
    else:
        case = good.sent(**{member: mutated(data, getattr(good.evidence, member))})
    judgement, unchanged = case.judge(), good.judge()
    if judgement.trusted:
        assert member in {"signature", "certificate", "attestation_key"} or case.evidence == good.evidence
        assert (judgement.clock, judgement.seen) == (unchanged.clock, unchanged.seen)
    else:
        assert judgement.check in range(1, 7)
        assert (judgement.clock, judgement.seen) == (None, None)


def mutated(data: st.DataObject, original: bytes) -> bytes:
    """``original`` with some bytes replaced, inserted or cut out; or something else altogether."""
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(start + 8, len(original))))
    return data.draw(st.one_of(BYTES, BYTES.map(lambda inserted: original[:start] + inserted[:8] + original[end:])))


@given(event_log=BYTES, ima_log=BYTES)
def test_no_log_but_a_true_one_is_believed(good: Case, event_log: bytes, ima_log: bytes) -> None:
    assert good.sent(event_log=event_log).judge().check == 8
    assert good.sent(ima_log=ima_log).judge().check == 8
