"""The tap tells what reaches the TPM, and the observers are there only when they are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tpm_mtls_relay
from support.relay import relay_layers
from support.tpm_commands import get_capability
from tpm_mtls_relay.errors import NO_TPM, OptionError, TransportError
from tpm_mtls_relay.messages.wire import code_of, simple_command
from tpm_mtls_relay.observers.observers import Observers, check_observers
from tpm_mtls_relay.observers.tap import Tap
from tpm_mtls_relay.options import parse_options

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm
    from tpm_mtls_relay.observers.tap import Listener

RANDOM = simple_command(0x17B, b"\0\x08")
ANSWER = bytes.fromhex("8001 0000000a 00000000")


class Heard:
    """A listener."""

    def __init__(self) -> None:
        self.all: list[tuple[bytes, bytes, float, float]] = []

    def __call__(self, command: bytes, response: bytes, started: float, seconds: float) -> None:
        self.all.append((command, response, started, seconds))


def test_every_listener_hears_the_command_the_response_and_the_time_and_the_program_gets_the_same_bytes() -> None:
    first, second = Heard(), Heard()
    listeners: list[Listener] = [first, second]
    assert Tap(lambda _: ANSWER, listeners)(RANDOM) == ANSWER
    assert first.all == second.all
    ((command, response, started, seconds),) = first.all
    assert (command, response) == (RANDOM, ANSWER)
    assert started > 1.7e9
    assert 0 <= seconds < 1


def test_a_tpm_that_does_not_answer_is_heard_as_the_relays_refusal() -> None:
    def broken(_: bytes) -> bytes:
        raise TransportError("the connection to the TPM broke")

    heard = Heard()
    with pytest.raises(TransportError, match="broke"):
        Tap(broken, [heard])(RANDOM)
    assert code_of(heard.all[0][1]) == NO_TPM


def test_without_an_option_nothing_stands_before_the_transport() -> None:
    def transport(_: bytes) -> bytes:
        return ANSWER

    observers = Observers(parse_options(["--tcti", "x"]))
    assert observers.before(transport) is transport
    observers.close()


def test_a_relay_without_these_options_imports_none_of_it() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tpm_mtls_relay.program;"
        "from tpm_mtls_relay.observers.observers import Observers; from tpm_mtls_relay.options import parse_options;"
        "Observers(parse_options(['--tcti', 'x'])); print(*sys.modules)"
    )
    folder = str(Path(tpm_mtls_relay.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, folder], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "tpm_mtls_relay.observers.observers" in loaded
    for module in ("tap", "latency", "latency_file", "reporter", "facts", "capture", "counters", "command_names"):
        assert f"tpm_mtls_relay.{module}" not in loaded
    assert not loaded & {"json", "tomllib", "fcntl"}


def test_all_options_at_once_observe_what_passes(tpm: SimulatedTpm, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("trace", "pcap", "metrics")}
    named = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    with relay_layers(tpm, "--pass-through", "--latency-model", "chip", *named) as relay:
        assert code_of(relay(get_capability(6, 0x100, 1))) == 0
    (line,) = files["trace"].read_text().splitlines()
    assert json.loads(line)["command"] == "GetCapability"
    assert json.loads(line)["seconds"] >= 0.005  # the chip's
    assert files["pcap"].read_bytes()[:4] == bytes.fromhex("0a0d0d0a")
    assert 'tpm_mtls_command_seconds_count{command="GetCapability"} 1' in files["metrics"].read_text()


def test_what_cannot_be_written_is_said_and_the_program_still_gets_its_tpm(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a letter")
    named = ["--trace", str(tmp_path / "no-folder" / "trace"), "--pcap", str(tmp_path / "text")]
    with relay_layers(tpm, *named, "--metrics", str(tmp_path / "text")) as relay:
        assert code_of(relay(RANDOM)) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(tmp_path.name)[2] or line for line in said] == [
        "/no-folder/trace: no such file or directory",
        "/text is no capture file",
        "/text is no file of counters",
    ]
    assert (tmp_path / "text").read_text() == "a letter"


def test_check_opens_the_files_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = parse_options(["--tcti", "x", "--check", "--latency-model", "chip", "--pcap", str(tmp_path / "p")])
    assert check_observers(good) == 0
    assert capsys.readouterr().err == ""
    bad = parse_options(["--tcti", "x", "--check", "--pcap", str(tmp_path)])
    assert check_observers(bad) == 2
    assert capsys.readouterr().err == f"tpm-mtls relay: cannot write {tmp_path}: is a directory\n"
    unknown = parse_options(["--tcti", "x", "--check", "--latency-model", "nope"])
    assert check_observers(unknown) == 2
    assert "there is no latency model 'nope'" in capsys.readouterr().err


def test_a_wrong_latency_model_is_refused_before_the_tpm_is_opened() -> None:
    with pytest.raises(OptionError, match="there is no latency model 'nope'"):
        Observers(parse_options(["--tcti", "x", "--latency-model", "nope"]))
