"""The relay's life as a program: started by libtss2, ended by it, killed, or left with nobody to serve."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.openssl_tpm import openssl_tpm
from support.relay import RelayProcess, relay_layers, relay_process
from support.tpm_commands import OWNER, flush, handle_in, sized, with_password
from support.tpm_keys import make_key
from tpm_mtls.relay import relay_tcti
from tpm_mtls_relay import errors
from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, simple_command
from tpm_mtls_relay.options import parse_options
from tpm_mtls_relay.parent import Parent
from tpm_mtls_relay.program import refuse_everything, report, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm import SimulatedTpm

RANDOM = simple_command(commands.GET_RANDOM, b"\0\x08")
PRIMARY = with_password(
    commands.CREATE_PRIMARY,
    bytes.fromhex("0004 0000 0000")
    + sized(bytes.fromhex("0023000b00040072000000100018000b0003001000000000"))
    + sized(b"")
    + bytes(4),
    handles=(OWNER,),
)
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)


@pytest.fixture(autouse=True)
def _not_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own TLS side silences libtss2, and with it the relay, in the processes that it starts."""
    monkeypatch.delenv("TSS2_LOG", raising=False)


@pytest.fixture(params=[False, True], ids=["as libtss2 starts it", "measured"])
def relay(request: pytest.FixtureRequest, tpm: SimulatedTpm) -> Iterator[RelayProcess]:
    with relay_process(tpm, measured=request.param) as relay:
        yield relay


def test_it_answers_until_its_stdin_is_closed_and_leaves_nothing(tpm: SimulatedTpm, relay: RelayProcess) -> None:
    assert len(relay(RANDOM)) == 20
    handle_in(relay(PRIMARY))
    assert len(tpm.handles("transient")) == 1
    assert relay.close() == 0
    assert relay.stderr == ""
    assert tpm.handles("transient") == []


def test_libtss2_ends_it_by_sigterm_and_waits_for_it(tpm: SimulatedTpm, relay: RelayProcess) -> None:
    """tcti_cmd_finalize closes the pipes only after that."""
    handle_in(relay(PRIMARY))
    before = time.monotonic()
    relay.process.send_signal(signal.SIGTERM)
    assert relay.process.wait(timeout=10) == 0
    assert time.monotonic() - before < 5
    assert tpm.handles("transient") == []
    relay.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_terminals_signals_are_the_programs(relay: RelayProcess, number: signal.Signals) -> None:
    assert len(relay(RANDOM)) == 20
    relay.process.send_signal(number)
    assert len(relay(RANDOM)) == 20


def test_a_command_may_come_in_pieces(relay: RelayProcess) -> None:
    for byte in RANDOM:
        relay.write(bytes([byte]))
    assert len(relay.read()) == 20
    relay.write(RANDOM + RANDOM)
    assert len(relay.read()) == 20
    assert len(relay.read()) == 20


def test_a_command_larger_than_a_tpm_takes_is_refused_and_the_next_one_understood(relay: RelayProcess) -> None:
    for size in (4097, 65536):
        assert code_of(relay(HEADER.pack(NO_SESSIONS, size, commands.HASH) + bytes(size - 10))) == 0xBF941
    assert len(relay(RANDOM)) == 20
    relay.close()
    assert relay.stderr.splitlines()[0] == "tpm-mtls relay: a command of 4097 bytes; a TPM takes 4096 at most"


@pytest.mark.parametrize(
    "header",
    [HEADER.pack(0x00C1, 10, 1), HEADER.pack(NO_SESSIONS, 9, 1), HEADER.pack(NO_SESSIONS, 65537, 1), b"GET / HTTP"],
)
def test_what_is_no_command_is_refused_and_ends_it(relay: RelayProcess, header: bytes) -> None:
    """Where the next command begins cannot be known."""
    assert code_of(relay(header)) == errors.MALFORMED_COMMAND
    assert relay.read() == b""
    assert relay.wait() == 0
    assert relay.stderr.startswith("tpm-mtls relay: ")
    assert "Traceback" not in relay.stderr


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11])
def test_a_program_that_ends_within_a_command_ends_it(tpm: SimulatedTpm, relay: RelayProcess, size: int) -> None:
    handle_in(relay(PRIMARY))
    relay.write(RANDOM[:size])
    assert relay.close() == 0
    assert tpm.handles("transient") == []


def test_a_program_that_does_not_read_ends_it(tpm: SimulatedTpm, relay: RelayProcess) -> None:
    handle_in(relay(PRIMARY))
    assert relay.process.stdout is not None
    relay.process.stdout.close()
    relay.write(RANDOM)
    assert relay.process.wait(timeout=10) == 0
    assert tpm.handles("transient") == []
    relay.wait()
    assert relay.stderr == ""


def test_no_tpm_is_an_error_at_each_command(capfd: pytest.CaptureFixture[str]) -> None:
    relay = RelayProcess("swtpm:host=127.0.0.1,port=1", measured=True)
    for _ in range(2):
        assert code_of(relay(RANDOM)) == errors.NO_TPM
    assert relay.close() == 0
    assert relay.stderr == "tpm-mtls relay: no TPM answers at 127.0.0.1, port 1: Connection refused\n" * 2
    capfd.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nonsense"], "option --nonsense is unknown or lacks its value"),
        (["--policies"], "option --policies is unknown or lacks its value"),
        (["--time-limit", "soon"], "--time-limit is no number of seconds: soon"),
        (["--time-limit", "nan"], "--time-limit is no number of seconds: nan"),
        (["--time-limit", "0"], "--time-limit is no number of seconds: 0"),
    ],
)
def test_a_wrong_option_is_said_at_each_command(tpm: SimulatedTpm, options: list[str], message: str) -> None:
    relay = RelayProcess(tpm.tcti, *options, measured=True)
    assert code_of(relay(RANDOM)) == errors.NO_TPM
    assert relay.close() == 1
    assert relay.stderr == f"tpm-mtls relay: {message}\n"


def test_the_options_are_understood() -> None:
    options = parse_options(
        ["--tcti", "device", "--policies", "a", "--policies", "b", "--pass-through", "--time-limit", "2.5"]
    )
    assert (options.tcti, options.policies, options.pass_through, options.time_limit) == (
        "device",
        ["a", "b"],
        True,
        2.5,
    )
    with pytest.raises(OptionError, match="--tcti is missing"):
        parse_options(["--pass-through"])


def test_it_holds_nothing_of_the_programs_and_dumps_no_core(tpm: SimulatedTpm) -> None:
    """A listening socket that it inherited would keep the program's port; a pipe's end would hide the pipe's end."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    program = [sys.executable, "-m", "tpm_mtls_relay", "--tcti", tpm.tcti]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as process:
        os.close(writing)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(RANDOM)
        process.stdin.flush()
        assert len(process.stdout.read(20)) == 20
        assert os.read(reading, 1) == b""
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    os.close(reading)


def test_a_blocked_sigterm_is_unblocked(tpm: SimulatedTpm) -> None:
    """The mask is inherited; with it, libtss2 would wait for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        relay = RelayProcess(tpm.tcti)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert len(relay(RANDOM)) == 20
    relay.process.send_signal(signal.SIGTERM)
    assert relay.process.wait(timeout=10) == 0
    relay.wait()


def _die_with_parent() -> None:
    """What libtss2 asks for between fork and exec."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@pytest.mark.parametrize("measured", [False, True])
def test_the_end_of_the_thread_that_started_it_is_not_the_programs_end(tpm: SimulatedTpm, *, measured: bool) -> None:
    """Linux sends the parent-death signal when the thread ends."""
    started: list[RelayProcess] = []

    def load_the_key() -> None:
        started.append(RelayProcess(tpm.tcti, preexec=_die_with_parent, measured=measured))
        assert len(started[0](RANDOM)) == 20

    thread = threading.Thread(target=load_the_key)
    thread.start()
    kernels = Path(f"/proc/self/task/{thread.native_id}")
    thread.join()
    (relay,) = started
    deadline = time.monotonic() + 10
    while kernels.exists():  # the kernel's thread ends after Python's
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(relay(RANDOM)) == 20
    handle_in(relay(PRIMARY))
    relay.process.send_signal(signal.SIGTERM)  # now it is meant
    assert relay.process.wait(timeout=10) == 0
    assert tpm.handles("transient") == []
    relay.wait()


def test_the_programs_death_ends_it_even_if_somebody_else_holds_its_pipes(tpm: SimulatedTpm) -> None:
    script = """
import ctypes, os, subprocess, sys
reading, writing = os.pipe()
relay = subprocess.Popen(sys.argv[2:], stdin=reading, stdout=subprocess.PIPE,
                         preexec_fn=lambda: ctypes.CDLL(None).prctl(1, 15))
os.write(writing, bytes.fromhex(sys.argv[1]))
relay.stdout.read(14)
if os.fork() == 0:
    os.read(0, 1)  # holds the relay's stdin open
    os._exit(0)
print(relay.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    program = [sys.executable, "-c", script, PRIMARY.hex()]
    relay = [sys.executable, "-m", "tpm_mtls_relay", "--tcti", tpm.tcti]
    with subprocess.Popen([*program, *relay], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pid = int(process.stdout.readline())
        assert process.wait(timeout=10) == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert tpm.handles("transient") == []
        process.stdin.close()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_signal_within_a_command_lets_the_tpm_finish_it(tpm: SimulatedTpm) -> None:
    """Otherwise what the command loads would be nobody's."""
    with relay_process(tpm, measured=True) as relay:
        assert len(relay(RANDOM)) == 20
        rsa = bytes.fromhex("0001000b00040072000000100014000b0800000000000000")
        make = with_password(
            commands.CREATE_PRIMARY,
            bytes.fromhex("0004 0000 0000") + sized(rsa) + sized(b"") + bytes(4),
            handles=(OWNER,),
        )
        relay.write(make)
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.wait(timeout=60) == 0
        assert tpm.handles("transient") == []
        relay.wait()


def test_the_parents_thread_is_not_ended_while_it_lives() -> None:
    parent = Parent()
    assert not parent.only_a_thread_ended()


def test_where_the_kernel_does_not_list_children_sigterm_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONFIG_PROC_CHILDREN."""
    monkeypatch.setattr(os, "listdir", lambda _path: ["nobody"])
    monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    assert not Parent().only_a_thread_ended()


def test_where_proc_says_nothing_sigterm_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent()
    monkeypatch.setattr(os, "getppid", lambda: 1 << 30)
    gone = Parent()
    assert not parent.only_a_thread_ended()
    assert not gone.only_a_thread_ended()


def test_layers_are_closed_when_the_program_has_gone(tpm: SimulatedTpm) -> None:
    from_program, to_relay = os.pipe()
    from_relay, to_program = os.pipe()
    os.write(to_relay, RANDOM)
    os.close(to_relay)
    with relay_layers(tpm) as layers:
        assert run(layers, reading=from_program, writing=to_program) == 0
    assert len(os.read(from_relay, 100)) == 20
    os.write(2, b"")
    for descriptor in (from_program, from_relay, to_program):
        os.close(descriptor)


def test_every_command_is_refused_when_the_options_are_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    from_program, to_relay = os.pipe()
    from_relay, to_program = os.pipe()
    os.write(to_relay, RANDOM + RANDOM)
    os.close(to_relay)
    assert refuse_everything(OptionError("wrong"), reading=from_program, writing=to_program) == 1
    assert os.read(from_relay, 100) == HEADER.pack(NO_SESSIONS, 10, errors.NO_TPM) * 2
    assert capfd.readouterr().err == "tpm-mtls relay: wrong\n" * 2
    for descriptor in (from_program, from_relay, to_program):
        os.close(descriptor)


def test_it_says_why_on_stderr_unless_libtss2_is_silenced_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TSS2_LOG", raising=False)
    report("the reason")
    assert capfd.readouterr().err == "tpm-mtls relay: the reason\n"
    monkeypatch.setenv("TSS2_LOG", "all+NONE")
    report("the reason")
    assert capfd.readouterr().err == ""


def test_openssl_signs_through_it_and_leaves_nothing(tpm: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(tpm, tmp_path)
    (tmp_path / "message").write_bytes(b"message")
    arguments = ("-sign", "-rawin", "-digest", "sha256", "-inkey", str(key.reference), "-in", str(tmp_path / "message"))
    tcti, tpm.tcti = tpm.tcti, relay_tcti(tpm.tcti)
    try:
        signed = openssl_tpm(tpm, "pkeyutl", *arguments)
    finally:
        tpm.tcti = tcti
    assert len(signed.stdout) >= 68
    assert signed.stderr == b""
    assert tpm.handles("transient") == []


def test_it_is_small(tpm: SimulatedTpm) -> None:
    with relay_process(tpm) as relay:
        handle = handle_in(relay(PRIMARY))
        assert code_of(relay(flush(handle))) == 0
        status = Path(f"/proc/{relay.pid}/status").read_text()
        (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
        assert resident < 20 * 1024


def test_it_imports_nothing_that_is_slow() -> None:
    """Each of these would cost more than all of the relay's own modules."""
    folder = Path(sys.modules["tpm_mtls_relay"].__path__[0]).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import tpm_mtls_relay.program; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    slow = {"argparse", "dataclasses", "enum", "hashlib", "json", "pathlib", "re", "socket", "subprocess", "typing"}
    assert slow.isdisjoint(loaded.stdout.split())
