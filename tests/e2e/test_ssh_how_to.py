"""docs/how-to/ssh.md: its commands as they stand, with stock OpenSSH, and a resource manager before the TPM."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from support.examples import free_port, until_listening
from support.how_to import HowTo
from support.resource_manager import running_resource_manager
from support.tpm import SimulatedTpm
from support.units import analyze, needs_systemd, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"
UNIT = "ssh-tpm.service"

# what the page leaves to the reader's own configuration
CLIENT = """    HostName 127.0.0.1
    Port {port}
    User {user}
    HostKeyAlias gateway
    UserKnownHostsFile {folder}/known_hosts
    IdentityFile none
    BatchMode yes
"""
SERVER = """Port {port}
ListenAddress 127.0.0.1
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
StrictModes no
PidFile none
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HowTo]:
    """The page after its first section, in the folder that is HOME: with the key."""
    folder = tmp_path_factory.mktemp("ssh")
    home = folder / "home"
    home.mkdir()
    tpm = SimulatedTpm(folder / "tpm")
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            running_resource_manager(tpm, folder / "bus", patch) as tcti,
        ):
            patch.setenv("HOME", str(home))
            patch.setenv("TPM2_PKCS11_TCTI", tcti)
            instead = {LIBRARY: str(library()), "ssh gateway.example": f"ssh -F {home}/config gateway.example"}
            made = HowTo("ssh", SimpleNamespace(tcti=tcti), home, instead)
            made.run_section("A key")
            yield made
        tpm.assert_nothing_leaked()
    finally:
        tpm.stop()


def library() -> Path:
    """tpm2-pkcs11 on this machine."""
    (found,) = Path("/usr/lib").glob("*/pkcs11/libtpm2_pkcs11.so")
    return found


@pytest.fixture(scope="module")
def host(page: HowTo) -> str:
    """The public key of another host key, in the file ``host``."""
    path = page.folder / "host"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


@contextmanager
def ssh_server(page: HowTo, configuration: str) -> Iterator[None]:
    """An SSH server at a free port, with the page's configuration of its client."""
    folder = page.folder
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it drops its privileges; the service makes it else
    port = free_port()
    words = {"port": port, "folder": folder, "user": getpass.getuser()}
    (folder / "sshd_config").write_text(SERVER.format(**words) + configuration)
    (client,) = page.blocks("Log in", "text")
    (folder / "config").write_text(client.replace(LIBRARY, str(library())) + CLIENT.format(**words))
    program = shutil.which("sshd", path="/usr/sbin:/sbin")
    assert program, "sshd is not installed (Debian package openssh-server)"
    command = [program, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            until_listening(process, port, folder / "sshd.log")
            yield
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def holding_agent(page: HowTo, commands: str) -> Iterator[None]:
    """The agent that ``commands`` start."""
    pid = int(page.run(f'{commands}\nprintf "\\n%s" "$SSH_AGENT_PID"').stdout.rpartition("\n")[2])
    try:
        yield
    finally:
        # killed with it, the library would leave its session to the resource manager, which ends soon after
        page.run(f"ssh-add -q -e {LIBRARY}", SSH_AUTH_SOCK=str(page.folder / "agent.sock"))
        os.kill(pid, signal.SIGTERM)


def know(folder: Path, public: str) -> None:
    """Makes ``public`` the host key that the client expects."""
    (folder / "known_hosts").write_text(f"gateway {public}")


def test_a_device_logs_in_and_nobody_else(page: HowTo, host: str) -> None:
    home = page.folder
    public = (home / "ssh.pub").read_text()
    assert public.startswith("ecdsa-sha2-nistp256 ")
    log_in, _ = page.blocks("Log in")
    know(home, host)
    with ssh_server(page, f"HostKey {home}/host\n"):
        (home / "authorized_keys").write_text(public)
        assert "load average" in page.run(log_in).stdout
        (home / "authorized_keys").write_text(host)
        assert "Permission denied (publickey)" in page.run(f"ends_with 255 {log_in}").stderr


def test_an_agent_holds_the_key_for_signatures(page: HowTo) -> None:
    home = page.folder
    public = (home / "ssh.pub").read_text()
    _, sign = page.blocks("Log in")
    (home / "report.txt").write_text("all is well\n")
    (home / "signers").write_text(f"sensor-17 {public}")
    verify = "ssh-keygen -Y verify -f signers -I sensor-17 -n file -s report.txt.sig"
    with holding_agent(page, sign):
        assert 'Good "file" signature for sensor-17' in page.run(f"{verify} < report.txt").stdout
        page.run(f"ends_with 255 {verify} < signers")


def test_an_ssh_server_has_its_host_key_from_the_agent_of_the_unit(page: HowTo, host: str) -> None:
    home = page.folder
    public = (home / "ssh.pub").read_text()
    log_in, _ = page.blocks("Log in")
    (home / "authorized_keys").write_text(public)
    (configuration,) = page.blocks("The host key of a server", "text")
    (install,) = page.blocks("The host key of a server")
    page.run(f'systemctl() {{ [ "$3" = {UNIT} ]; }}\n{in_folder(install, home)}')
    with holding_agent(page, as_systemd_would(page)), ssh_server(page, in_folder(configuration, home)):
        know(home, public)
        assert "load average" in page.run(log_in).stdout
        know(home, host)
        assert "Host key verification failed" in page.run(f"ends_with 255 {log_in}").stderr
    said = (home / "sshd.log").read_text()
    assert "Accepted publickey" in said
    assert not re.search("WARNING|Unable to load", said)


def in_folder(text: str, folder: Path) -> str:
    """``text`` with the folders of a machine in ``folder``."""
    for word in ("/etc/ssh", "/run/ssh-tpm", "/root"):
        text = text.replace(word, str(folder))
    return text


def as_systemd_would(page: HowTo) -> str:
    """The commands of the unit that starts the agent, without a home folder and a terminal."""
    variables, start, add = (setting(unit(page), name) for name in ("Environment", "ExecStart", "ExecStartPost"))
    return f'export {in_folder(variables, page.folder)}\nunset HOME\neval "$({start})"\n{add} < /dev/null'


def unit(page: HowTo) -> Path:
    """The file with the page's unit."""
    path = page.folder / UNIT
    path.write_text(page.blocks("The host key of a server", "ini")[0])
    return path


@needs_systemd
def test_systemd_understands_the_unit(page: HowTo) -> None:
    done = analyze("verify", "--man=no", unit(page))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    made = setting(unit(page), "RuntimeDirectory")
    assert setting(unit(page), "Environment").startswith(f"SSH_AUTH_SOCK=/run/{made}/agent.sock ")


def test_a_key_with_a_policy_does_not_sign(page: HowTo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    other = HowTo("ssh", SimpleNamespace(tcti=os.environ["TPM2_PKCS11_TCTI"]), tmp_path, {LIBRARY: str(library())})
    (create,) = page.blocks("A key")
    other.run(create.replace("keygen create", "keygen create --pcrs sha256:7"))
    (tmp_path / "report.txt").write_text("all is well\n")
    _, sign = page.blocks("Log in")
    start, last = sign.rstrip().rsplit("\n", 1)
    with holding_agent(other, f"{start}\nends_with 255 {last}"):
        assert not (tmp_path / "report.txt.sig").exists()
    # after this refusal tpm2-pkcs11 1.9.1 (Debian 13) leaves its session in the TPM, 1.9.0 (Debian 12) does not
    subprocess.run(["tpm2_flushcontext", "-T", os.environ["TPM2_PKCS11_TCTI"], "--loaded-session"], check=True)
