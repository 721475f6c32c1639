"""For which keys the relay is used, how it is started, and what that costs."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from support.certificates import TestCa
from support.handshakes import handshake
from support.relay_children import relays
from support.tpm_keys import make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.cli import main
from tpm_mtls.errors import OpensslError, TctiInvalidError, UsageError
from tpm_mtls.identity import DEFAULT_FOLDER
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.pyopenssl import pyopenssl_context
from tpm_mtls.relay import interpreter, key_tcti, policy_folders, relay_tcti, tpm_behind
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity

TPM = "swtpm:port=1"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def identity(ca: TestCa, tpm: SimulatedTpm) -> Identity:
    key = make_key(tpm, ca.folder)
    return ca.identity(key.reference, key.public_key, "localhost")


@pytest.fixture
def bound(tmp_path: Path) -> Path:
    """A folder with some key's policy."""
    folder = tmp_path / "bound"
    folder.mkdir()
    (folder / f"000b{'00' * 32}.policy.json").touch()
    return folder


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPM_MTLS_CONFIG", "TPM_MTLS_RELAY", "TPM_MTLS_TCTI"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_without_policies_gets_the_tpm_itself(tmp_path: Path) -> None:
    assert key_tcti(TPM, [tmp_path]) == TPM
    assert key_tcti(TPM, []) == TPM
    (tmp_path / "v1.signed-policy.json").touch()  # signed, but no key asks for it
    assert key_tcti(TPM, [tmp_path], relay="auto") == TPM


def test_a_key_with_a_policy_beside_it_gets_the_relay_with_all_folders(tmp_path: Path, bound: Path) -> None:
    through = key_tcti(TPM, [tmp_path, bound])
    assert through == relay_tcti(TPM, policies=[tmp_path, bound])
    assert f"--policies {tmp_path} --policies {bound}" in through
    assert tpm_behind(through) == TPM


def test_always_and_never_mean_it(tmp_path: Path, bound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_tcti(TPM, [bound], relay="never") == TPM
    assert tpm_behind(through := key_tcti(TPM, [tmp_path], relay="always")) == TPM
    assert through != TPM
    monkeypatch.setenv("TPM_MTLS_RELAY", "never")
    assert key_tcti(TPM, [bound]) == TPM
    assert key_tcti(TPM, [tmp_path], relay="always") == through
    with pytest.raises(UsageError, match="relay is 'sometimes'"):
        key_tcti(TPM, [tmp_path], relay="sometimes")


def test_a_latency_model_slows_every_key_down_and_changes_no_command_of_a_plain_one(
    tmp_path: Path, bound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'tcti = "{TPM}"\nlatency_model = "slb9670"')
    monkeypatch.setenv("TPM_MTLS_CONFIG", str(path))
    plain = key_tcti(None, [tmp_path])
    assert plain == relay_tcti(TPM, options=["--pass-through", "--latency-model", "slb9670"])
    assert key_tcti(None, [bound]) == relay_tcti(TPM, policies=[bound], options=["--latency-model", "slb9670"])
    path.write_text('latency_model = "slb96700"')
    with pytest.raises(UsageError, match="slb96700") as refused:
        key_tcti(TPM, [tmp_path])
    assert "latency_model" in refused.value.hint


def test_a_folder_that_cannot_be_listed_has_no_policies(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert key_tcti(TPM, [tmp_path / "file", tmp_path / "missing"]) == TPM


def test_policies_lie_beside_the_key_and_its_certificate(tmp_path: Path) -> None:
    key, certificate = KeyFile(tmp_path / "keys" / "key.pem"), tmp_path / "certs" / "cert.pem"
    assert policy_folders(key, certificate) == [tmp_path / "keys", tmp_path / "certs"]
    assert policy_folders(key, tmp_path / "keys" / "cert.pem") == [tmp_path / "keys"]
    assert policy_folders(KeyFile(Path("key.pem"))) == [Path.cwd()]
    assert policy_folders(PersistentHandle(0x81000100), certificate) == [tmp_path / "certs", DEFAULT_FOLDER]


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=80))
def test_any_tcti_goes_through_a_relays_untouched(rest: str) -> None:
    """A ``cmd:`` one, with its own quotes, and another relay's too."""
    for tcti in (f"cmd:{rest}", f"pcap:device:{rest}", relay_tcti(rest)):
        assert tpm_behind(relay_tcti(tcti, policies=[Path("/a b")])) == tcti


@pytest.mark.parametrize("tcti", ["swtpm:port=1", "cmd:exec 'unclosed", "cmd:exec python -I -S other --tcti x", "cmd:"])
def test_what_starts_no_relay_is_the_tpm_itself(tcti: str) -> None:
    assert tpm_behind(tcti) == tcti


def test_the_interpreter_is_this_one_or_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    assert interpreter(TPM) == sys.executable
    (tmp_path / "bin").mkdir()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "bin" / version).touch()
    for executable in ("", None, "/usr/bin/uwsgi", "/opt/pythonic-app"):
        assert interpreter(TPM, executable=executable, prefix=str(tmp_path)) == str(tmp_path / "bin" / version)
        with pytest.raises(TctiInvalidError, match="needs a Python interpreter, and this program is none") as refused:
            interpreter(TPM, executable=executable, prefix=str(tmp_path / "missing"))
        assert "never" in refused.value.hint


def test_a_relay_that_is_not_installed_as_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = ModuleType("tpm_mtls_relay")
    zipped.__spec__ = ModuleSpec("tpm_mtls_relay", None, origin=str(tmp_path / "a.zip/tpm_mtls_relay/__init__.py"))
    monkeypatch.setitem(sys.modules, "tpm_mtls_relay", zipped)
    with pytest.raises(TctiInvalidError, match="relay is not installed"):
        relay_tcti(TPM)
    monkeypatch.setitem(sys.modules, "tpm_mtls_relay", None)
    with pytest.raises(TctiInvalidError, match="relay is not installed"):
        relay_tcti(TPM)


def test_a_plain_key_starts_no_process(identity: Identity, ca: TestCa, tpm: SimulatedTpm) -> None:
    before = relays()
    context = client_context(identity, tcti=tpm.tcti)
    assert handshake(context, server_context(ca.software_identity("localhost"))).client == "localhost"
    assert relays() == before


@pytest.mark.parametrize("relay", ["always", "never", "auto"])
def test_a_handshake_through_the_relay_or_not(relay: RelayUse, identity: Identity, tpm: SimulatedTpm) -> None:
    before = relays()
    client, server = (make(identity, tcti=tpm.tcti, relay=relay) for make in (client_context, server_context))
    assert handshake(client, server).server == "localhost"
    assert client.diagnose() is None
    assert len(relays() - before) == (relay == "always"), "one relay for a whole process, if any"


def test_a_software_key_needs_neither_relay_nor_tpm(ca: TestCa) -> None:
    before = relays()
    software = ca.software_identity("localhost")
    assert handshake(client_context(software, relay="always"), server_context(software, relay="always"))
    assert relays() == before


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=["1.3", "1.2"])
@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_through_the_relay_a_handshake_is_one_command(
    algorithm: str,
    version: ssl.TLSVersion,
    ca: TestCa,
    tpm: SimulatedTpm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted by libtss2, between the relay and the TPM."""
    key = make_key(tpm, ca.folder, algorithm, handle=0x81000100)
    device = ca.identity(key.reference, key.public_key, "localhost")
    server = server_context(ca.software_identity("localhost"), minimum_version=version)
    server.num_tickets = 0
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    client = client_context(device, tcti=trace.tcti, relay="always", minimum_version=version)
    client.maximum_version = version
    handshake(client, server)
    first = len(trace.commands())
    handshake(client, server)
    assert trace.commands()[first:] == ["Sign"]


def test_the_programs_signals_are_as_before(identity: Identity, tpm: SimulatedTpm) -> None:
    """libtss2 leaves SIGCHLD blocked in the thread that starts a program, and so in whatever that thread starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    client_context(identity, tcti=tpm.tcti, relay="always")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.SIGCHLD not in before


def test_openssl_env_uses_the_relay_by_the_same_rule(state_dir: Path, bound: Path, tpm: SimulatedTpm) -> None:
    def printed(*arguments: str) -> str:
        command = ["--state-dir", str(state_dir), "--tcti", tpm.tcti, "--json", *arguments]
        outcome = CliRunner().invoke(main, ["openssl-env", *command], catch_exceptions=False)
        return str(json.loads(outcome.output)["TPM2OPENSSL_TCTI"])

    assert printed() == tpm.tcti
    assert printed("--relay", "always") == relay_tcti(tpm.tcti, policies=[state_dir])
    assert printed("--key", str(bound / "key.pem")) == relay_tcti(tpm.tcti, policies=[bound, state_dir])
    assert printed("--key", str(bound / "key.pem"), "--relay", "never") == tpm.tcti
    for name in bound.iterdir():
        name.rename(state_dir / name.name)
    assert printed() == relay_tcti(tpm.tcti, policies=[state_dir])


def test_another_program_uses_a_plain_key_through_the_relay(
    identity: Identity, state_dir: Path, tpm: SimulatedTpm
) -> None:
    command = ["--state-dir", str(state_dir), "--tcti", tpm.tcti, "--relay", "always", "--json"]
    variables = json.loads(CliRunner().invoke(main, ["openssl-env", *command], catch_exceptions=False).output)
    (state_dir / "message").write_bytes(b"message")
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(identity.key), "-out", "signature", "message"],
        env=os.environ | variables,
        cwd=state_dir,
        check=True,
        timeout=60,
    )
    assert (state_dir / "signature").read_bytes()


def test_pyopenssl_has_one_way_to_the_tpm(
    identity: Identity, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpm_mtls.pyopenssl._tcti", [relay_tcti(tpm.tcti)])
    with pytest.raises(OpensslError, match=f"uses the TPM at {tpm.tcti} already in another way"):
        pyopenssl_context(identity, tcti=tpm.tcti, relay="never")
