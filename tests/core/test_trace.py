"""The TPM commands that a program sent are read from libtss2's own capture."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import PemError, StorageError
from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def capture(tpm: SimulatedTpm, tmp_path: Path) -> Path:
    path = tmp_path / "capture.pcapng"
    subprocess.run(
        ["tpm2_getrandom", "-T", f"pcap:{tpm.tcti}", "--hex", "8"],
        env=os.environ | {"TCTI_PCAP_FILE": str(path)},
        check=True,
        capture_output=True,
    )
    return path


def test_commands_are_listed_in_order_with_their_response(capture: Path) -> None:
    commands = read_trace(capture)
    assert [command.name for command in commands] == ["GetCapability", "GetRandom"]
    assert all(command.response == 0 and command.seconds is not None and command.seconds >= 0 for command in commands)


def test_a_refused_command_shows_its_response_code(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    subprocess.run(
        ["tpm2_readpublic", "-T", f"pcap:{tpm.tcti}", "-c", "0x81000100"],
        env=os.environ | {"TCTI_PCAP_FILE": str(path)},
        check=False,
        capture_output=True,
    )
    last = read_trace(path)[-1]
    assert (last.name, last.response) == ("ReadPublic", 0x18B)


def test_a_capture_cut_off_in_the_last_answer_gives_the_command_without_one(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:-10])
    assert read_trace(capture)[-1].response is None
    assert read_trace(capture)[-1].seconds is None


def test_an_unknown_command_is_shown_by_its_number(capture: Path) -> None:
    data = capture.read_bytes()
    at = data.index(bytes.fromhex("8001 0000 000c 0000 017b"))
    capture.write_bytes(data[: at + 6] + bytes.fromhex("2000 0001") + data[at + 10 :])
    assert read_trace(capture)[-1].name == "0x20000001"


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----")
    with pytest.raises(PemError, match="is no capture of libtss2's pcap transport"):
        read_trace(path)


def test_a_packet_too_short_for_a_tpm_message_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(bytes.fromhex("06000000 10000000 00000000 10000000"))
    with pytest.raises(PemError, match="no TPM message"):
        read_trace(path)


def test_a_missing_capture_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing-here: no such file"):
        read_trace(tmp_path / "nothing-here")


@given(st.binary(max_size=300))
def test_any_bytes_give_commands_or_the_readers_own_error(data: bytes) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "capture")
        path.write_bytes(data)
        with contextlib.suppress(PemError):
            read_trace(path)
