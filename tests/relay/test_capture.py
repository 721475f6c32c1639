"""The capture file: what Wireshark and our own reader make of it, and what is not in it."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tracing import Recorder, pairs
from tpm_mtls.trace import read_trace
from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages.wire import simple_command
from tpm_mtls_relay.observers.appending import AppendedFile
from tpm_mtls_relay.observers.capture import Capture

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

RANDOM = simple_command(0x17B, b"\0\x08")
ANSWER = bytes.fromhex("8001 00000014 00000000 0008 1122334455667788")
MASKED = bytes.fromhex("8001 00000014 00000000 0008 0000000000000000")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tpm.pcapng"


def tshark(file: Path, *fields: str) -> list[list[str]]:
    """What Wireshark's own dissector says about each packet."""
    shown = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-T", "fields", *shown], check=True, capture_output=True, text=True, timeout=60
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_the_file_can_be_read_by_its_owner_only(file: Path) -> None:
    before = os.umask(0)
    try:
        Capture(str(file), 1).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_our_reader_gets_the_commands_with_their_times(file: Path) -> None:
    capture = Capture(str(file), 4711)
    capture(RANDOM, ANSWER, 1_800_000_000.25, 0.0625)
    capture(RANDOM, simple_command(0x922), 1_800_000_001.0, 0.5)
    capture.close()
    first, second = read_trace(file)
    assert (first.name, first.response, first.started, first.seconds) == ("GetRandom", 0, 1_800_000_000.25, 0.0625)
    assert (second.response, second.seconds) == (0x922, 0.5)


def test_what_could_be_a_secret_is_zeros_and_every_size_stays(file: Path) -> None:
    capture = Capture(str(file), 4711)
    capture(RANDOM, ANSWER, 1.0, 0.1)
    capture.close()
    assert pairs(file.read_bytes()) == [(RANDOM, MASKED)]


def test_wireshark_says_the_same_of_ours_as_of_libtss2s_own(tpm: SimulatedTpm, tmp_path: Path, file: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "data").write_bytes(b"sealed data")
    capture = Capture(str(file), 4711)
    seen, said = [], ("_ws.col.Info", "_ws.malformed", "tcp.len")
    for tool in (
        ("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "primary.ctx", "-p", "a password"),
        ("tpm2_create", "-C", "primary.ctx", "-P", "a password", "-i", "data", "-u", "k.pub", "-r", "k.priv"),
        ("tpm2_nvdefine", "0x1500001", "-C", "o", "-s", "8", "-a", "ownerwrite|authread", "-p", "another"),
        ("tpm2_nvwrite", "0x1500001", "-C", "o", "-i", "data-8"),
        ("tpm2_nvread", "0x1500001", "-P", "another"),
        ("tpm2_pcrread", "sha256:0,7"),
        ("tpm2_readpublic", "-c", "0x81000100"),
    ):
        (tmp_path / "data-8").write_bytes(b"12345678")
        for command, response in record(*tool, check=tool[0] != "tpm2_readpublic"):
            capture(command, response, 1.0, 0.1)
        seen += tshark(record.file, *said)
        tpm.flush()
    capture.close()
    assert tshark(file, *said) == seen
    commands = [text for text, *_ in seen if "Command TPM2_CC_NV_Write" in text]
    assert len(commands) == 1


def test_programs_that_share_a_file_are_told_apart(file: Path) -> None:
    first, second = Capture(str(file), 1), Capture(str(file), 2)
    first(RANDOM, ANSWER, 1.0, 0.1)
    second(RANDOM, ANSWER, 1.05, 0.2)
    first(RANDOM, ANSWER, 2.0, 0.3)
    assert [command.seconds for command in read_trace(file)] == pytest.approx([0.1, 0.2, 0.3], abs=1e-5)
    packets = tshark(file, "ip.src", "tcp.seq_raw", "frame.time_epoch")
    assert packets[::2] == [
        ["10.0.0.1", "1", "1.000000000"],
        ["10.0.0.2", "1", "1.050000000"],
        ["10.0.0.1", "13", "2.000000000"],
    ]
    first.close()
    second.close()


def test_a_capture_goes_on_in_a_file_that_is_one_and_nothing_else_is_touched(file: Path, tmp_path: Path) -> None:
    for _ in range(2):
        capture = Capture(str(file), 1)
        capture(RANDOM, ANSWER, 1.0, 0.1)
        capture.close()
    assert len(read_trace(file)) == 2
    other = tmp_path / "letter"
    other.write_text("Dear")
    with pytest.raises(OptionError, match="letter is no capture file"):
        Capture(str(other), 1)
    assert other.read_text() == "Dear"


def test_nothing_is_written_through_a_link_or_into_somebody_elses_file(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.touch()
    link.symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        AppendedFile(str(link))
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(mine, 12345, -1)
    with pytest.raises(PermissionError, match="not permitted"):
        AppendedFile(str(mine))


def test_a_full_disk_ends_the_capture_and_stops_nothing() -> None:
    file = AppendedFile("/dev/full")
    file.write(b"x")
    file.write(b"y")
    file.close()


def test_a_reader_that_went_away_stops_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device or address"):
        AppendedFile(str(pipe))  # nobody reads
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file = AppendedFile(str(pipe))
    file.write(b"one")
    assert os.read(reader, 10) == b"one"
    os.close(reader)
    file.write(b"two")
    file.close()


@given(st.lists(st.tuples(st.binary(min_size=10, max_size=200), st.binary(min_size=10, max_size=200)), max_size=5))
def test_any_messages_make_a_capture_that_can_be_read(exchanged: list[tuple[bytes, bytes]]) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "capture")
        capture = Capture(str(path), 1)
        for command, response in exchanged:
            capture(command, response, 1.0, 0.1)
        capture.close()
        assert len(read_trace(path)) == len(exchanged)
        assert [tuple(map(len, pair)) for pair in pairs(path.read_bytes())] == [
            tuple(map(len, pair)) for pair in exchanged
        ]
