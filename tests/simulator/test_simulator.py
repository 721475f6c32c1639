"""A simulated TPM lives in one folder, starts only when asked, and leaves nothing elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tpm_mtls.cli import run
from tpm_mtls.errors import SimulatorError, StorageError
from tpm_mtls_simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    device = Simulator(tmp_path / "tpm")
    yield device
    device.stop()


def _tool(tcti: str, *command: str) -> str:
    return subprocess.run([command[0], "-T", tcti, *command[1:]], check=True, capture_output=True, text=True).stdout


def test_it_has_endorsement_keys_with_certificates_of_its_makers_ca(simulator: Simulator) -> None:
    tcti = simulator.start().tcti
    indices = _tool(tcti, "tpm2_getcap", "handles-nv-index")
    assert "0x1C00002" in indices
    assert "0x1C00016" in indices
    certificate = subprocess.run(
        ["tpm2_nvread", "-T", tcti, "-C", "o", "0x01C00002"], check=True, capture_output=True
    ).stdout
    ek = x509.load_der_x509_certificate(certificate)
    ca = simulator.folder / "ca"
    issuer = x509.load_pem_x509_certificate((ca / "issuercert.pem").read_bytes())
    ek.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(
        x509.load_pem_x509_certificate((ca / "swtpm-localca-rootca-cert.pem").read_bytes())
    )


def test_everything_lies_in_its_folder_and_nothing_in_the_home(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    simulator.start()
    assert list(home.iterdir()) == []
    for path in simulator.folder.rglob("*privkey*"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


def test_starting_twice_leaves_the_running_one(simulator: Simulator) -> None:
    first = simulator.start(ek_certificates=False)
    assert simulator.start() == first


def test_it_keeps_its_keys_and_its_port_over_a_power_cut(simulator: Simulator) -> None:
    tcti = simulator.start(ek_certificates=False).tcti
    _tool(tcti, "tpm2_nvdefine", "-C", "o", "-s", "4", "0x01500010")
    assert simulator.stop(power_cut=True)
    assert simulator.start().tcti == tcti
    assert "0x1500010" in _tool(tcti, "tpm2_getcap", "handles-nv-index")


def test_only_a_power_cut_counts_as_a_wrong_authorization_value(simulator: Simulator) -> None:
    """TPM 2.0 Library part 1 rev 1.59, 19.8.6: after the use of an object whose authorization is protected."""

    def failed() -> int:
        shown = _tool(simulator.start(ek_certificates=False).tcti, "tpm2_getcap", "properties-variable")
        return int(shown.partition("TPM2_PT_LOCKOUT_COUNTER: ")[2].split()[0], 16)

    def use_a_key() -> None:
        tcti, context = simulator.start(ek_certificates=False).tcti, str(simulator.folder / "key.context")
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
        _tool(tcti, "tpm2_createprimary", "-G", "ecc:ecdsa", "-a", attributes, "-p", "right", "-c", context)
        _tool(tcti, "tpm2_sign", "-c", context, "-p", "right", "-o", "/dev/null", "/dev/null")

    for lost, counted in ((False, 0), (True, 1)):
        use_a_key()
        assert simulator.stop(power_cut=lost)
        assert failed() == counted


def test_one_whose_channel_is_held_is_stopped_all_the_same(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(simulator.start(ek_certificates=False).tcti.rpartition("=")[2])
    monkeypatch.setattr("tpm_mtls_simulator.simulator._SHUTDOWN_TIMEOUT", 0.2)
    with socket.create_connection(("127.0.0.1", port)):
        assert simulator.stop()
    assert not simulator.stop()


def test_several_run_at_once_with_different_seeds_and_one_maker(tmp_path: Path) -> None:
    devices = [Simulator(tmp_path / name) for name in ("a", "b")]
    try:
        statuses = [device.start(ca=tmp_path / "maker") for device in devices]
        names = {_tool(status.tcti, "tpm2_readpublic", "-c", "0x81010001") for status in statuses}
        assert len(names) == 2
        assert not (tmp_path / "a" / "ca").exists()
    finally:
        for device in devices:
            device.stop()


def test_a_taken_port_is_refused_and_named(simulator: Simulator) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SimulatorError, match=f"could not listen on port {port}") as caught:
            simulator.start(ek_certificates=False, port=port)
        assert caught.value.hint == "another program may have it; name another with --port"  # there is no log to see
        with pytest.raises(SimulatorError, match=f"could not listen on port {port - 1}"):
            simulator.start(ek_certificates=False, port=port - 1)


def test_stopping_what_does_not_run_is_no_error(simulator: Simulator) -> None:
    assert simulator.status() is None
    assert not simulator.stop()


def test_a_killed_one_is_seen_as_stopped_and_starts_again(simulator: Simulator) -> None:
    pid = simulator.start(ek_certificates=False).pid
    assert pid is not None
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    import select

    select.select([descriptor], [], [], 10)
    os.close(descriptor)
    status = simulator.status()
    assert status is not None
    assert not status.running
    assert simulator.start().running


def test_another_process_with_the_same_number_is_never_stopped(simulator: Simulator) -> None:
    simulator.folder.mkdir()
    (simulator.folder / "swtpm.pid").write_text(str(os.getpid()))
    assert not simulator.stop()


def test_one_that_does_not_end_is_reported(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = simulator.start(ek_certificates=False).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # a stopped process cannot act on SIGTERM
    monkeypatch.setattr("tpm_mtls_simulator.simulator._STOP_TIMEOUT", 0.05)
    with pytest.raises(SimulatorError, match=f"process {pid}.* does not end"):
        simulator.stop(power_cut=True)
    monkeypatch.undo()
    os.kill(pid, signal.SIGCONT)


def test_damaged_settings_are_named(simulator: Simulator) -> None:
    simulator.folder.mkdir()
    (simulator.folder / "simulator.json").write_text('{"port": "x"}')
    with pytest.raises(SimulatorError, match=r"simulator\.json is damaged"):
        simulator.status()


def test_damaged_state_is_reported_with_the_log(simulator: Simulator) -> None:
    simulator.start(ek_certificates=False)
    simulator.stop()
    (simulator.state / "tpm2-00.permall").write_bytes(b"\0" * 100)
    with pytest.raises(SimulatorError, match="swtpm") as caught:
        simulator.start()
    assert str(simulator.log) in caught.value.hint


def test_a_manufacture_that_was_interrupted_is_begun_again(simulator: Simulator) -> None:
    unfinished = simulator.folder / "state.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "tpm2-00.permall").write_bytes(b"half")
    assert simulator.start(ek_certificates=False).running
    assert not unfinished.exists()


def test_missing_programs_are_named_with_their_package(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match="the program swtpm is not installed") as caught:
        simulator.start()
    assert "package swtpm" in caught.value.hint


def test_a_failing_setup_leaves_no_state(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("swtpm", "swtpm_localca"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "swtpm_setup").write_text("#!/bin/sh\necho 'Something Broke'\nexit 1\n")
    (programs / "swtpm_setup").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(SimulatorError, match="swtpm_setup failed: something broke"):
        simulator.start()
    assert not simulator.state.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot make .*file/tpm"):
        Simulator(tmp_path / "file" / "tpm").start(ek_certificates=False)


def test_it_never_loads_the_provider_that_would_wait_for_it(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", "/nonexistent/openssl.cnf")
    pid = simulator.start(ek_certificates=False).pid
    assert b"OPENSSL_CONF" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_the_command_line_starts_tells_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "tpm")
    assert run(["simulator", "status", "--dir", folder, "--json"]) == 10
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"running": False, "tcti": None}
    assert f"start it: tpm-mtls simulator start --dir {folder}" in shown.err
    assert run(["simulator", "start", "--dir", folder, "--no-ek-cert", "--ca", str(tmp_path / "ca")]) == 0
    tcti = capsys.readouterr().out.strip()
    try:
        assert run(["simulator", "status", "--dir", folder]) == 0
        assert capsys.readouterr().out.strip() == tcti
        assert _tool(tcti, "tpm2_getrandom", "--hex", "4")
    finally:
        assert run(["simulator", "stop", "--dir", folder, "--power-cut"]) == 0
    assert capsys.readouterr().out == "stopped\n"
    assert run(["simulator", "stop", "--dir", folder]) == 0
    assert capsys.readouterr().out == "it was not running\n"
    assert run(["simulator", "status", "--dir", folder]) == 10


def test_a_program_without_a_tpm_never_starts_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", "keygen", "list", "--tcti", "swtpm:host=127.0.0.1,port=1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 3
    assert "no TPM answers at swtpm:host=127.0.0.1,port=1" in done.stderr
