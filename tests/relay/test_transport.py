"""Ways to the TPM: swtpm's socket, device files, programs; TPMs that answer garbage, too little, too late, never."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.faulty_tpm import HANG, faulty_tpm
from support.relay import relay_layers
from tpm_mtls_relay import errors
from tpm_mtls_relay.connection.opening import is_raw, open_transport
from tpm_mtls_relay.connection.transport import (
    LONG_TIME_LIMIT,
    TIME_LIMIT,
    Connection,
    Deadline,
    DeviceTransport,
    Limits,
    device_refusal,
)
from tpm_mtls_relay.errors import ConnectionLostError, KeyGoneError, MalformedCommandError, TransportError
from tpm_mtls_relay.layers import Layers
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, simple_command
from tpm_mtls_relay.options import parse_options

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

RANDOM = simple_command(commands.GET_RANDOM, b"\0\x08")
ANSWER = HEADER.pack(NO_SESSIONS, 20, 0) + b"\0\x08" + b"12345678"


def ask(tcti: str, *, seconds: float = 300.0, command: bytes = RANDOM) -> bytes:
    connection = Connection(lambda: open_transport(tcti, Limits(seconds)), lambda: None)
    try:
        return connection(command)
    finally:
        connection.close()


def test_swtpm_is_connected_to_for_each_command_so_that_others_have_their_turn(tpm: SimulatedTpm) -> None:
    transport = open_transport(tpm.tcti)
    for _ in range(2):
        assert len(transport(RANDOM)) == 20
        assert tpm.tool("tpm2_getrandom", "--hex", "4").returncode == 0
    transport.close()


@pytest.mark.parametrize(
    "tcti",
    ["swtpm:port=0", "swtpm:port=65536", "swtpm:port=x", "swtpm:host=,port=2321", "swtpm:path=/run/swtpm", "swtpm:x"],
)
def test_what_is_no_configuration_of_swtpm_is_refused(tcti: str) -> None:
    with pytest.raises(TransportError, match="no configuration of swtpm"):
        open_transport(tcti)


def test_nobody_at_swtpms_port_is_an_error() -> None:
    with pytest.raises(TransportError, match=r"no TPM answers at 127\.0\.0\.1, port 1: Connection refused") as caught:
        ask("swtpm:host=127.0.0.1,port=1")
    assert caught.value.code == errors.NO_TPM
    with pytest.raises(TransportError, match=r"no TPM answers at nowhere\.invalid"):
        ask("swtpm:host=nowhere.invalid")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errors.MALFORMED_RESPONSE),
        (HEADER.pack(NO_SESSIONS, 9, 0), errors.MALFORMED_RESPONSE),
        (HEADER.pack(NO_SESSIONS, 4097, 0) + bytes(4087), errors.MALFORMED_RESPONSE),
        (HEADER.pack(NO_SESSIONS, 0xFFFFFFFF, 0) + bytes(100), errors.MALFORMED_RESPONSE),
        (HEADER.pack(0x8003, 10, 0), errors.MALFORMED_RESPONSE),
        (b"", errors.NO_TPM),
        (ANSWER[:5], errors.NO_TPM),
        (ANSWER[:-1], errors.NO_TPM),
        (HANG, errors.NO_TPM),
    ],
)
def test_a_tpm_that_answers_garbage_little_or_never_is_a_named_error(answer: bytes | None, code: int) -> None:
    with faulty_tpm(answer) as tpm:
        with pytest.raises(TransportError, match=r"garbage|closed|in time") as caught:
            ask(tpm.tcti, seconds=0.3)
        assert caught.value.code == code
        assert tpm.commands == [RANDOM]


def test_after_garbage_the_next_command_finds_the_tpm_again() -> None:
    with faulty_tpm(b"garbage garbage", ANSWER) as tpm:
        layers = Layers(parse_options(["--tcti", tpm.tcti, "--pass-through"]))
        with pytest.raises(TransportError, match="garbage"):
            layers(RANDOM)
        assert layers(RANDOM) == ANSWER
        layers.close()


def test_what_comes_after_the_response_is_left_alone() -> None:
    """The connection is closed: it cannot be taken for the next command's response."""
    with faulty_tpm(ANSWER + b"more", ANSWER) as tpm:
        assert ask(tpm.tcti) == ANSWER
        assert ask(tpm.tcti) == ANSWER


def test_a_connection_that_dies_within_a_harmless_command_is_opened_again() -> None:
    with faulty_tpm(b"", ANSWER) as tpm:
        layers = Layers(parse_options(["--tcti", tpm.tcti]))
        assert layers(RANDOM) == ANSWER
        layers.close()
        assert tpm.commands == [RANDOM] * 2


def test_a_tpm_that_never_answers_does_not_hold_up_the_end() -> None:
    load = simple_command(commands.HASH_SEQUENCE_START, b"\0\0\0\x0b")
    loaded = HEADER.pack(NO_SESSIONS, 14, 0) + 0x80000000.to_bytes(4, "big")
    with faulty_tpm(loaded, HANG) as tpm:
        layers = Layers(parse_options(["--tcti", tpm.tcti, "--time-limit", "0.3"]))
        assert layers._tracking(load) == loaded
        before = time.monotonic()
        layers.close()
        assert time.monotonic() - before < 2


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        (commands.SIGN, TIME_LIMIT),
        (commands.CREATE, LONG_TIME_LIMIT),
        (commands.CREATE_PRIMARY, LONG_TIME_LIMIT),
        (commands.CREATE_LOADED, LONG_TIME_LIMIT),
        (commands.SELF_TEST, LONG_TIME_LIMIT),
    ],
)
def test_keys_may_take_their_time(command: int, seconds: float) -> None:
    remaining = Limits().deadline(simple_command(command)).remaining()
    assert seconds - 1 < remaining <= seconds
    assert Limits(2.0).deadline(simple_command(command)).remaining() <= 2


def test_a_deadline_passes() -> None:
    reading, writing = os.pipe()
    with pytest.raises(TransportError, match="in time"):
        Deadline(0.01).wait(reading)
    with pytest.raises(TransportError, match="in time"):
        Deadline(0).remaining()
    os.close(reading)
    os.close(writing)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A named pipe behaves as a TPM's device towards one that writes and reads; it answers with the command itself."""
    path = tmp_path / "tpm0"
    os.mkfifo(path)
    return path


def test_a_device_gets_one_write_and_gives_one_read(device: Path) -> None:
    transport = open_transport(f"device:{device}")
    assert transport(RANDOM) == RANDOM
    assert transport(RANDOM) == RANDOM
    transport.close()


def test_a_device_that_never_answers_is_given_up(device: Path) -> None:
    transport = DeviceTransport(str(device), Limits(0.2))
    os.close(transport._descriptor)
    ours, tpms = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport._descriptor = ours.detach()
    with pytest.raises(TransportError, match="in time") as caught:
        transport(RANDOM)
    assert caught.value.code == errors.NO_TPM
    assert tpms.recv(4096) == RANDOM
    transport.close()
    tpms.close()


def test_a_devices_answer_of_another_length_is_garbage(device: Path) -> None:
    transport = open_transport(f"device:{device}")
    with pytest.raises(TransportError, match="garbage") as caught:
        transport(RANDOM + b"more")
    assert caught.value.code == errors.MALFORMED_RESPONSE
    transport.close()


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"cannot open .*/tpm9: No such file") as caught:
        open_transport(f"device:{tmp_path}/tpm9")
    assert caught.value.code == errors.NO_TPM


def test_a_device_that_fails_is_an_error() -> None:
    transport = open_transport("device:/dev/full")
    with pytest.raises(ConnectionLostError, match="the TPM's device failed: No space left"):
        transport(RANDOM)
    transport.close()


def test_the_kernels_resource_manager_refuses_handles_that_it_does_not_know() -> None:
    """With EINVAL, as this file does for another reason."""
    transport = open_transport("device:/proc/self/oom_score_adj")
    with pytest.raises(KeyGoneError, match="no such object"):
        transport(RANDOM)
    transport.close()


def test_a_command_that_is_too_large_for_the_tpm_costs_no_connection_and_no_key() -> None:
    """Seen on Linux 6.12: 4,096 bytes to a TPM with CRB; the next command is served, and every object is there."""
    dropped: list[bool] = []

    class Small:
        def __call__(self, command: bytes) -> bytes:
            if len(command) > len(RANDOM):
                raise device_refusal(OSError(errno.E2BIG, "Argument list too long"))
            return ANSWER

        def close(self) -> None:
            pass

    connection = Connection(Small, lambda: dropped.append(True))
    with pytest.raises(MalformedCommandError, match="larger than the TPM takes") as caught:
        connection(RANDOM + bytes(4000))
    assert caught.value.code == errors.MALFORMED_COMMAND
    assert connection(RANDOM) == ANSWER
    assert dropped == []


def test_what_the_kernel_cannot_swap_has_a_name() -> None:
    """Seen on Linux 6.12, which says EFAULT, after 65,535 commands with a session beside another one that was idle."""
    error = device_refusal(OSError(errno.EFAULT, "Bad address"))
    assert isinstance(error, ConnectionLostError)
    assert error.code == errors.NOT_SWAPPED
    assert "dmesg says why" in str(error)


def test_a_device_without_its_driver_is_a_lost_connection() -> None:
    """Seen on Linux 6.12 after the driver was taken away from the TPM."""
    error = device_refusal(OSError(errno.EPIPE, "Broken pipe"))
    assert isinstance(error, ConnectionLostError)
    assert error.sent
    assert str(error) == "the TPM's device failed: Broken pipe"


@pytest.mark.parametrize(
    ("tcti", "raw"),
    [
        ("swtpm:port=2321", True),
        ("device:/dev/tpm0", True),
        ("device:/dev/tpmrm0", False),
        ("device", False),
        ("device:", False),
        ("tabrmd:", False),
        ("cmd:tpm2_send", False),
    ],
)
def test_a_tpm_without_resource_manager_is_told_by_its_tcti(tcti: str, *, raw: bool) -> None:
    assert is_raw(tcti) is raw


def test_any_other_tcti_goes_through_tpm2_send(tpm: SimulatedTpm) -> None:
    transport = open_transport(tpm.tcti.replace("swtpm:", "libtss2-tcti-swtpm.so.0:"))
    for _ in range(3):
        assert len(transport(RANDOM)) == 20
    transport.close()


def test_a_program_may_know_the_way(tpm: SimulatedTpm) -> None:
    with relay_layers(tpm) as direct:
        expected = len(direct(RANDOM))
    assert len(ask(f"cmd:exec tpm2_send -T {tpm.tcti}")) == expected


def test_a_helper_that_has_ended_is_started_again(tmp_path: Path) -> None:
    """It serves one command, and then it is gone."""
    script = (
        "import os, sys; command = os.read(0, 4096); open(sys.argv[1], 'ab').write(b'x');"
        f"os.write(1, bytes.fromhex('{ANSWER.hex()}'))"
    )
    count = tmp_path / "count"
    helper = shlex.join([sys.executable, "-I", "-S", "-c", script, str(count)])
    layers = Layers(parse_options(["--tcti", f"cmd:exec {helper}"]))
    for _ in range(3):
        assert layers(RANDOM) == ANSWER
    layers.close()
    assert count.read_bytes() == b"xxx"


@pytest.mark.parametrize("helper", ["exit 0", "exec /nowhere/to/be/found", "echo garbage, garbage; sleep 5"])
def test_a_helper_that_is_none_is_an_error(helper: str) -> None:
    with pytest.raises(TransportError, match=r"closed|broke|has ended|garbage"):
        ask(f"cmd:{helper} 2>/dev/null", seconds=3)


def test_a_helper_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TransportError, match="cannot start tpm2_send: No such file"):
        ask("tabrmd:")


def test_a_helper_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpm_mtls_relay.connection.helper._GRACE", 200)
    before = time.monotonic()
    with pytest.raises(TransportError, match="in time"):
        ask("cmd:trap '' TERM; while :; do sleep 1; done", seconds=0.5)
    assert time.monotonic() - before < 3


def test_a_helper_gets_a_large_command_whole(tmp_path: Path) -> None:
    copy = tmp_path / "command"
    command = simple_command(commands.HASH, bytes(4000))
    success = "\\200\\001\\000\\000\\000\\012\\000\\000\\000\\000"
    helper = f"head -c {len(command)} > {shlex.quote(str(copy))}; printf '{success}'"
    assert code_of(ask(f"cmd:{helper}", command=command)) == 0
    assert copy.read_bytes() == command
