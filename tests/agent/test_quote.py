"""What the agent collects for its backend: from a real (simulated) TPM, and what it does not answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from support.attestation_keys import enroll_attestation_key
from support.event_logs import keep_banks
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from support.vectors import vector
from tpm_mtls.attestation.messages import EVENT_LOG_LIMIT, NONCE_LENGTHS, decode_evidence, encode
from tpm_mtls.attestation.quote_checks import verify_quote
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    EvidenceError,
    EvidenceRefusedError,
    ForeignKeyError,
    IdentityError,
    StateError,
    TpmUnavailableError,
)
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.quote import collect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls.tpm import Tpm

NONCE = bytes(range(100, 132))
COMMANDS = ["Load", "Quote", "PCR_Read", "PCR_Read", "PCR_Read", "FlushContext"]
QUOTE, PCR_READ = 0x158, 0x17E


@pytest.fixture
def folder(tpm: SimulatedTpm, tmp_path: Path) -> Path:
    enroll_attestation_key(tpm, tmp_path / "identity", certificate=b"certificate")
    return tmp_path / "identity"


def quote(tcti: str, folder: Path, nonce: bytes = NONCE) -> QuoteEvidence:
    with open_tpm(tcti) as opened:
        return collect(opened, folder, nonce, None, None).evidence


def test_what_is_collected_passes_the_backend_s_checks(tpm: SimulatedTpm, folder: Path) -> None:
    tpm.tool("tpm2_pcrextend", f"7:sha256={'11' * 32}", f"23:sha256={'22' * 32}")

    evidence = decode_evidence(encode(quote(tpm.tcti, folder)))

    key = load_attestation_key(folder)
    assert key is not None
    assert (evidence.nonce, evidence.certificate, evidence.attestation_key) == (NONCE, b"certificate", key.public)
    found = verify_quote(evidence, NONCE, key.area)
    assert list(found.pcrs) == ["sha256"]
    assert list(found.values) == list(range(16))
    assert {pcr for pcr, value in found.values.items() if any(value)} == {7}
    assert sorted(evidence.pcrs["sha256"]) == list(range(24))
    assert evidence.pcrs["sha256"][23].strip("0f")
    assert (evidence.event_log, evidence.ima_log) == (None, None)


def test_six_commands_and_nothing_is_left(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    quote(trace.tcti, folder)
    assert trace.commands() == COMMANDS
    assert tpm.handles("transient") == []


@pytest.mark.parametrize("length", [0, 8, 11, 33, 64])
def test_a_nonce_of_another_length_is_not_answered_and_no_command_is_sent(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    for possible in (NONCE_LENGTHS[0], NONCE_LENGTHS[-1]):
        assert quote(tpm.tcti, folder, bytes(possible)).nonce == bytes(possible)
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with pytest.raises(EvidenceError, match=f"a nonce of {length} bytes is not answered: it must have 12 to 32"):
        quote(trace.tcti, folder, bytes(length))
    assert trace.commands() == []


def test_the_logs_are_read_after_the_quote_and_sent_as_they_are(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path
) -> None:
    events, files = tmp_path / "binary_bios_measurements", tmp_path / "binary_runtime_measurements"
    events.write_bytes(vector("eventlog/uefi/binary_bios_measurements"))

    def after_quote() -> None:
        files.write_bytes(vector("eventlog/uefi/ima-binary"))

    with open_tpm(tpm.tcti) as opened:
        found = collect(_meddling(opened, after_quote), folder, NONCE, events, files)
    assert found.evidence.event_log == events.read_bytes()
    assert found.evidence.ima_log == files.read_bytes()
    assert found.missing == ()


def test_a_log_that_is_absent_oversized_or_unreadable_is_left_out_and_told(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(EVENT_LOG_LIMIT + 1))
    with open_tpm(tpm.tcti) as opened:
        absent = collect(opened, folder, NONCE, tmp_path / "absent", tmp_path / "no ima")
        wrong = collect(opened, folder, NONCE, large, tmp_path)
    assert (absent.evidence.event_log, absent.evidence.ima_log) == (None, None)
    assert absent.missing == (
        f"there is no event log at {tmp_path}/absent",
        f"there is no IMA list at {tmp_path}/no ima",
    )
    assert (wrong.evidence.event_log, wrong.evidence.ima_log) == (None, None)
    assert "the event log is not sent" in wrong.missing[0]
    assert f"larger than {EVENT_LOG_LIMIT} bytes" in wrong.missing[0]
    assert "the IMA list is not sent" in wrong.missing[1]


def test_without_an_attestation_key_there_is_no_quote(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="there is no attestation key in") as refusal:
        quote(tpm.tcti, tmp_path)
    assert "tpm-mtls keygen first-boot" in refusal.value.hint


def test_a_damaged_record_is_told(tpm: SimulatedTpm, folder: Path) -> None:
    (folder / "attestation.key.json").write_text("{}")
    with pytest.raises(IdentityError, match=r"attestation\.key\.json is damaged"):
        quote(tpm.tcti, folder)


def test_another_tpm_s_key_does_not_quote(make_tpm: Callable[[], SimulatedTpm], folder: Path, tmp_path: Path) -> None:
    other = make_tpm()
    enroll_attestation_key(other, tmp_path / "other")
    with pytest.raises(ForeignKeyError):
        quote(other.tcti, folder)


def test_a_tpm_that_keeps_no_sha256_bank_is_told(tpm: SimulatedTpm, folder: Path) -> None:
    keep_banks(tpm, "sha1")
    with pytest.raises(AlgorithmUnsupportedError, match="this TPM keeps no PCR bank sha256"):
        quote(tpm.tcti, folder)
    assert tpm.handles("transient") == []


def test_a_tpm_that_is_gone_is_told(tpm: SimulatedTpm, folder: Path) -> None:
    tpm.stop()
    with pytest.raises(TpmUnavailableError):
        quote(tpm.tcti, folder)


def test_a_pcr_that_is_extended_meanwhile_is_quoted_anew(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As IMA does: PCR 10, between the quote and the reading of the values."""
    times = [1, 1]
    trace = CommandTrace(tpm, tmp_path, monkeypatch)

    def extend() -> None:
        if times:
            times.pop()
            tpm.tool("tpm2_pcrextend", f"10:sha256={'33' * 32}")

    with open_tpm(trace.tcti) as opened:
        evidence = collect(_meddling(opened, extend), folder, NONCE, None, None).evidence
    assert times == []
    assert trace.commands() == [COMMANDS[0], *3 * COMMANDS[1:5], COMMANDS[5]]
    key = load_attestation_key(folder)
    assert key is not None
    assert any(verify_quote(evidence, NONCE, key.area).values[10])


def test_pcrs_that_are_extended_all_the_time_are_told_after_three_attempts(tpm: SimulatedTpm, folder: Path) -> None:
    def extend() -> None:
        tpm.tool("tpm2_pcrextend", f"10:sha256={'33' * 32}")

    message = "3 quotes did not fit the PCR values read with them: the PCR values are not those that were quoted"
    with open_tpm(tpm.tcti) as opened, pytest.raises(StateError, match=message) as refusal:
        collect(_meddling(opened, extend), folder, NONCE, None, None)
    assert isinstance(refusal.value.__cause__, EvidenceRefusedError)
    assert tpm.handles("transient") == []


def test_pcrs_that_change_while_they_are_read_are_read_anew(tpm: SimulatedTpm, folder: Path, tmp_path: Path) -> None:
    """The TPM's own counter tells: the second of three reads has another one."""
    proxy = TpmProxy(tpm, tmp_path)
    held = proxy.hold(PCR_READ)
    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(quote, proxy.tcti, folder)
        while not held.seen():
            time.sleep(0.01)
        tpm.tool("tpm2_pcrextend", f"10:sha256={'33' * 32}")
        held.release()
        evidence = collecting.result(timeout=60)
    assert evidence.pcrs["sha256"][10].strip("0")


def test_a_quote_that_was_changed_on_its_way_is_not_sent(tpm: SimulatedTpm, folder: Path, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.spoil(QUOTE, 60)
    with pytest.raises(EvidenceRefusedError) as refusal:
        quote(proxy.tcti, folder)
    assert refusal.value.check == 3


def _meddling(opened: Tpm, after_quote: Callable[[], None]) -> Any:  # noqa: ANN401 - stands for a Tpm
    """``opened``, with somebody who does something after each of its quotes."""

    class Attestation:
        def quote(self, *arguments: Any) -> Any:  # noqa: ANN401 - passed on
            quotation = opened.attestation.quote(*arguments)
            after_quote()
            return quotation

    class Meddling:
        attestation = Attestation()

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - passed on
            return getattr(opened, name)

    return Meddling()
