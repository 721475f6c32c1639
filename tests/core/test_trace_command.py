"""``tpm-mtls trace``: programs as they are, with what they sent to the TPM beside them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.openssl_tpm import MODULES
from tpm_mtls.cli import run
from tpm_mtls.programs import NOT_FOUND
from tpm_mtls.relay import relay_tcti
from tpm_mtls.trace import read_trace
from tpm_mtls.trace.command import VARIABLES, traced

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

TRACE = [sys.executable, "-m", "tpm_mtls", "trace"]
SAYS_WHERE = [sys.executable, "-c", f"import os; print(*(os.environ[name] for name in {VARIABLES}), sep='\\n')"]

# counts its interrupts; says so when it is ready for them
COUNTS_INTERRUPTS = """
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(40))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(got))
"""


@pytest.fixture
def where(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The TPM is where the environment says."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tpm.tcti


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_program_answers_as_ever_and_its_commands_are_on_stderr(
    where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert where
    assert run(["trace", "--", "tpm2_getrandom", "--hex", "8"]) == 0
    said = capfd.readouterr()
    assert len(bytes.fromhex(said.out)) == 8
    assert "GetRandom          8 bytes" in said.err
    assert said.err.splitlines()[-1].startswith("TPM  2 commands, ")
    assert "\x1b" not in said.err


def test_as_json_each_command_is_an_object_and_the_last_is_the_sum(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert where
    file = tmp_path / "trace.jsonl"
    assert run(["trace", "--json", "--out", str(file), "--", "tpm2_pcrread", "sha256:0"]) == 0
    assert capfd.readouterr().err == ""
    *commands, last = objects(file.read_text())
    assert [each["command"] for each in commands] == ["GetCapability", "PCR_Read"]
    assert {each["program"] for each in commands} == {"tpm2_pcrread"}
    assert last["summary"]["commands"] == 2


def test_a_program_and_its_children_are_seen_at_once(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    children = " & ".join(["tpm2_getrandom 8 >/dev/null"] * 4)
    assert run(["trace", "--json", "--", "sh", "-c", f"{children} & wait"]) == 0
    *commands, last = objects(capfd.readouterr().err)
    assert len({each["pid"] for each in commands}) == 4
    assert last["summary"]["by_command"]["GetRandom"]["count"] == 4


def test_the_traced_program_sends_what_it_sends_untraced(
    tpm: SimulatedTpm, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions outlive the program that made them; what it leaves in the TPM is left."""
    assert where
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "trace.jsonl"
    program = (
        "tpm2_startauthsession --policy-session -S s && tpm2_policypcr -S s -l sha256:0 -L p && tpm2_flushcontext s"
    )
    assert run(["trace", "--json", "--out", str(file), "sh", "-c", f"{program} && tpm2_createprimary -Q -c p.ctx"]) == 0
    assert tpm.handles("transient") == ["0x80000000"]
    tpm.flush()
    assert [each["command"] for each in objects(file.read_text())[:-1]].count("FlushContext") == 2


@pytest.fixture
def key(where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A key file of the TPM at ``where``."""
    path = tmp_path / "device.key.pem"
    assert run(["keygen", "create", "--tcti", where, "--out", str(path)]) == 0
    capfd.readouterr()
    return path


def test_the_signature_of_openssls_provider_is_seen(key: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (key.parent / "message").write_bytes(b"hello")
    provider = ("-provider", "tpm2", "-provider", "default", "-inkey", str(key), "-in", str(key.parent / "message"))
    program = ("openssl", "pkeyutl", *provider, "-sign", "-rawin", "-digest", "sha256", "-out", str(key.parent / "s"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OPENSSL_MODULES", str(MODULES))
        assert run(["trace", "--", *program]) == 0
    said = capfd.readouterr().err
    (signed,) = [line for line in said.splitlines() if line.startswith("TPM* ")]
    assert "ecdsa-sha256" in signed
    assert "ecc-p256 000b" in signed
    assert ", 1 of them Sign, " in said


def test_a_relay_of_the_programs_own_is_in_between(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As a TLS program with a policy key has one: it asks the traced relay, under the program's name."""
    assert where
    inner = "import os; from tpm_mtls.relay import relay_tcti; print(relay_tcti(os.environ['TPM_MTLS_TCTI']))"
    program = 'TPM2TOOLS_TCTI=$("$0" -c "$1") tpm2_getrandom --hex 8'
    assert run(["trace", "--json", "--", "sh", "-c", program, sys.executable, inner]) == 0
    *commands, last = objects(capfd.readouterr().err)
    assert [(each["program"], each["command"]) for each in commands][-1] == ("tpm2_getrandom", "GetRandom")
    assert last["summary"]["errors"] == 0


def test_where_the_tpm_is_is_told_by_every_variable(
    where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", "device:/dev/tpm7")
    monkeypatch.setenv("TPM2_PKCS11_TCTI", "none")
    assert run(["trace", "--", *SAYS_WHERE]) == 0
    ours, provider, tools, pkcs11 = capfd.readouterr().out.splitlines()
    assert f"--tcti {where} --pass-through --trace " in ours
    assert provider == ours
    assert "--tcti device:/dev/tpm7 --pass-through" in tools
    assert pkcs11 == "none"
    assert run(["trace", "--tcti", where, "--", *SAYS_WHERE]) == 0
    told = {line.partition(" --trace ")[0] for line in capfd.readouterr().out.splitlines()}
    assert told == {ours.partition(" --trace ")[0]}


def test_a_relay_that_is_there_already_is_the_one_that_traces() -> None:
    """What reaches the TPM is behind it."""
    relay = relay_tcti("device:/dev/tpmrm0", options=["--policies", "/etc/keys"])
    assert traced(relay, ["--trace", "/a folder/trace"]) == f"{relay} --trace '/a folder/trace'"
    plain = shlex.split(traced("swtpm:port=1", ["--trace", "/trace"]))
    assert plain[-5:] == ["--tcti", "swtpm:port=1", "--pass-through", "--trace", "/trace"]


def test_a_capture_for_wireshark(where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    file = tmp_path / "tpm.pcapng"
    assert run(["trace", "--pcap", str(file), "--", "tpm2_getrandom", "--hex", "8"]) == 0
    assert [each.name for each in read_trace(file)] == ["GetCapability", "GetRandom"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    capfd.readouterr()
    assert run(["trace", "--pcap", str(file), "--", "tpm2_getrandom", "--hex", "8"]) == 10
    assert "exists already and is not overwritten" in capfd.readouterr().err


def test_counters_of_all_programs(where: str, tmp_path: Path) -> None:
    assert where
    file = tmp_path / "tpm.prom"
    for _ in range(2):
        assert (
            run(["trace", "--metrics", str(file), "--", "sh", "-c", "tpm2_getrandom --hex 8; tpm2_getrandom --hex 8"])
            == 0
        )
    assert 'tpm_mtls_command_seconds_count{command="GetRandom"} 4\n' in file.read_text()


def test_a_chips_slowness(where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    model = tmp_path / "my.toml"
    model.write_text("default = 1\nGetRandom = 70")
    assert run(["trace", "--json", "--latency-model", str(model), "--", "tpm2_getrandom", "--hex", "8"]) == 0
    (random,) = [each for each in objects(capfd.readouterr().err) if each.get("command") == "GetRandom"]
    assert 0.07 <= random["seconds"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency-model", "fast"], "there is no latency model 'fast'"),
        (["--latency-model", "./no.toml"], "cannot read the latency model"),
        (["--metrics", "/no-folder/x"], "cannot write /no-folder/x: no such file or directory"),
        (["--pcap", "/no-folder/x"], "cannot write /no-folder/x: no such file or directory"),
    ],
)
def test_what_is_wrong_is_said_before_the_program_starts(
    where: str, options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert where
    assert run(["trace", *options, "--", "touch", str(tmp_path / "ran")]) == 2
    said = capfd.readouterr().err
    assert said.startswith("tpm-mtls: error: ")
    assert message in said
    assert "tpm-mtls: hint: " in said
    assert not (tmp_path / "ran").exists()


def test_a_trace_that_cannot_be_written_is_an_error(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    assert run(["trace", "--out", "/no-folder/x", "--", "true"]) == 8
    assert "cannot write /no-folder/x" in capfd.readouterr().err
    assert run(["trace", "--out", "/dev/full", "--", "tpm2_getrandom", "--hex", "8"]) == 8
    said = capfd.readouterr()
    assert len(bytes.fromhex(said.out)) == 8  # the program knows nothing of it
    assert "cannot write /dev/full: no space left on device" in said.err


@pytest.mark.parametrize(
    ("program", "status", "message"),
    [
        ("no-such-program", 127, "there is no program no-such-program"),
        ("/", 126, "cannot run /: permission denied"),
    ],
)
def test_a_program_that_does_not_run_has_a_shells_status(
    where: str, program: str, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert where
    assert run(["trace", "--", program]) == status
    assert f"tpm-mtls: error: {message}\ntpm-mtls: hint: " in capfd.readouterr().err


def test_a_program_that_does_not_use_the_tpm(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    assert run(["trace", "--", "sh", "-c", "exit 3"]) == 3
    assert "no command reached the TPM: sh does not use it" in capfd.readouterr().err


def test_a_killed_program_leaves_its_trace(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert where
    assert run(["trace", "--", "sh", "-c", "tpm2_getrandom 8 >/dev/null; kill -9 $$"]) == 137
    assert "sh ended with status 137" in capfd.readouterr().err


def test_a_wrong_option_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "--no-such-option", "--", "true"]) == 2
    assert run(["trace"]) == 2
    assert "missing argument 'COMMAND" in capfd.readouterr().err.lower().replace("command", "COMMAND")


def start(where: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*TRACE, "--tcti", where, "--", sys.executable, "-c", COUNTS_INTERRUPTS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 40)])
def test_signals_are_passed_on(where: str, number: signal.Signals, status: int) -> None:
    process = start(where)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == status
    assert "no command reached the TPM" in said


def on_terminal(where: str, *program: str, **environment: str) -> subprocess.Popen[bytes]:
    """The command in the foreground of a terminal of its own; what is written to its stdin is typed.

    With exec, for a shell that stays, as dash does, would end by Ctrl-C itself, with a status of its own.
    """
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM"}}
    return subprocess.Popen(
        ["script", "-qec", "exec " + shlex.join([*TRACE, "--tcti", where, "--", *program]), "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=kept | environment,
        bufsize=0,
    )


def test_ctrl_c_reaches_the_program_once(where: str) -> None:
    terminal = on_terminal(where, sys.executable, "-c", COUNTS_INTERRUPTS)
    assert terminal.stdout is not None
    assert terminal.stdout.readline() == b"ready\r\n"
    said, _ = terminal.communicate(b"\x03", timeout=20)
    assert terminal.returncode == 1
    assert b"no command reached the TPM" in said


def test_a_terminal_gets_colours_unless_its_user_wants_none(where: str) -> None:
    said, _ = on_terminal(where, "tpm2_getrandom", "--hex", "8", TERM="xterm").communicate(timeout=20)
    assert "\x1b[1mTPM  2 commands" in said.decode(errors="replace")
    assert "█" in said.decode(errors="replace")
    for unwanted in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        said, _ = on_terminal(where, "tpm2_getrandom", "--hex", "8", **unwanted).communicate(timeout=20)
        assert b"TPM  2 commands" in said
        assert b"\x1b" not in said


def test_a_closed_stderr_stops_nothing(where: str) -> None:
    process = subprocess.Popen(
        [*TRACE, "--tcti", where, "--", "sh", "-c", "read line; tpm2_getrandom --hex 8"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    said, _ = process.communicate("go\n", timeout=20)
    assert len(bytes.fromhex(said)) == 8
    assert process.returncode == 0


def test_no_temporary_folder_is_left(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert where
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for program in (["true"], ["no-such-program"], ["sh", "-c", "kill -9 $$"]):
        run(["trace", "--", *program])
    assert [path for path in tmp_path.iterdir() if path.name != "tpm-mtls"] == []


def test_without_a_tpm_the_program_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM_MTLS_TCTI", "device:/dev/no-such-tpm")
    assert run(["trace", "--", "touch", str(tmp_path / "ran")]) == 3
    assert not (tmp_path / "ran").exists()
    assert NOT_FOUND == 127


def test_no_secret_is_in_what_is_shown_or_captured(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole programs, one after the other; `tests/relay/test_masking.py` looks at each kind of secret."""
    assert where
    monkeypatch.chdir(tmp_path)
    value, sealed, stored = "auth-value-of-ours", "sealed-data-of-ours", "stored-data-of-ours"
    (tmp_path / "sealed").write_text(sealed)
    (tmp_path / "stored").write_text(stored)
    flush = "tpm2_flushcontext -t"
    script = f"""
    set -e
    tpm2_createprimary -Q -C o -G ecc -c p.ctx -p {value}; {flush}
    tpm2_create -Q -C p.ctx -P {value} -i sealed -p {value} -u s.pub -r s.priv; {flush}
    tpm2_load -Q -C p.ctx -P {value} -u s.pub -r s.priv -c s.ctx; {flush}
    tpm2_unseal -c s.ctx -p {value} -o unsealed; {flush}
    tpm2_nvdefine -Q 0x1500001 -C o -s 19 -a 'ownerwrite|authread' -p {value}
    tpm2_nvwrite -Q 0x1500001 -C o -i stored
    tpm2_nvread 0x1500001 -P {value} -o read
    tpm2_create -Q -C p.ctx -P {value} -G hmac -c h.ctx -p {value}; {flush}
    tpm2_hmac -c h.ctx -p {value} -o mac stored; {flush}
    """
    assert run(["trace", "--pcap", "p", "--metrics", "m", "--json", "--out", "j", "--", "sh", "-c", script]) == 0
    assert run(["trace", "--", "sh", "-c", f"tpm2_unseal -c s.ctx -p {value} -o again; {flush}"]) == 0
    shown = (tmp_path / "p").read_bytes() + (tmp_path / "m").read_bytes() + (tmp_path / "j").read_bytes()
    shown += capfd.readouterr().err.encode()
    assert b"Unseal" in shown
    assert (tmp_path / "unsealed").read_text() == (tmp_path / "again").read_text() == sealed
    assert (tmp_path / "read").read_text() == stored
    for secret in (value.encode(), sealed.encode(), stored.encode(), (tmp_path / "mac").read_bytes()):
        assert secret not in shown
        assert secret.hex().encode() not in shown
