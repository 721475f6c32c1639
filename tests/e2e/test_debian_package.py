"""The Debian package: built from the repository, installed into a throw-away root by dpkg, tried there, and removed."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.installed import Installed, debian_package, once
from support.tpm import SimulatedTpm  # noqa: TC001 - pytest reads a fixture's annotation
from support.units import UNITS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dpkg gives files to users"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return debian_package(tmp_path_factory)


def field(package: Path, name: str) -> str:
    done = subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Root:
    """A folder that dpkg takes for the root of a machine. What packages depend on is there by name only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes it an empty one."""
        folder = self.folder
        for part in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"):
            (folder / part).mkdir(parents=True)
        (folder / "var/lib/dpkg/status").touch()

    def dpkg(self, *words: str | Path, status: int = 0) -> str:
        # the root has no shell: dpkg runs the package's scripts outside and tells them the root (DPKG_ROOT)
        command = ["dpkg", f"--root={self.folder}", "--force-script-chrootless", *words]
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def pretend(self, depends: str, scratch: Path) -> None:
        """Installs empty packages by the names, and of the versions, that ``depends`` asks for."""
        versions: dict[str, str] = {}
        for name, version in re.findall(r"([a-z0-9.+-]+)(?: \(>= ([0-9.]+)\))?(?: \(<<[^)]*\))?(?:, |$)", depends):
            versions[name] = version or versions.get(name, "1")
        made = [self._empty(scratch, name, version) for name, version in versions.items()]
        self.dpkg("--install", *made)

    @staticmethod
    def _empty(scratch: Path, name: str, version: str) -> Path:
        (scratch / name / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: test <root@localhost>\n"
        (scratch / name / "DEBIAN" / "control").write_text(f"{control}Description: nothing\n")
        made = scratch / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--build", scratch / name, made], capture_output=True, check=True)
        return made


@pytest.fixture(scope="module")
def root(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    def make(folder: Path) -> None:
        root = Root(folder)
        root.prepare()
        refused = root.dpkg("--install", package, status=1)
        assert "depends on libtss2-esys" in refused
        root.pretend(field(package, "Depends"), tmp_path_factory.mktemp("depends"))
        root.dpkg("--configure", "--pending")

    return Root(once(tmp_path_factory, "root", make))


def test_the_package_says_what_it_needs(package: Path) -> None:
    depends = field(package, "Depends")
    assert re.search(r"python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+~\)", depends)
    for name in ("libc6", "libtss2-esys", "libtss2-tcti-device", "libtss2-tcti-cmd", "openssl", "systemd"):
        assert name in depends
    assert field(package, "Architecture") != "all"


def test_dpkg_has_installed_it(root: Root) -> None:
    assert "\nStatus: install ok installed\n" in root.dpkg("--status", "tpm-mtls")
    assert root.dpkg("--verify", "tpm-mtls") == ""


def test_the_services_are_there_and_none_is_enabled(root: Root) -> None:
    folder = root.folder / "usr/lib/systemd/system"
    assert {path.name for path in folder.iterdir()} == {unit.name for unit in UNITS}
    assert not (root.folder / "etc/systemd/system").exists()


def test_the_users_and_their_folders_are_made(root: Root) -> None:
    lines = (root.folder / "etc/passwd").read_text().splitlines()
    users = {line.split(":")[0]: int(line.split(":")[2]) for line in lines}
    for name, mode in (("tpm-mtls", 0o750), ("tpm-mtls-server", 0o750), ("tpm-mtls-pki", 0o700)):
        status = (root.folder / "var/lib" / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (users[name], mode)
    assert users.keys() >= {"tpm-mtls", "tpm-mtls-server", "tpm-mtls-pki"}
    for lookup in (pwd.getpwnam, grp.getgrnam):  # in the throw-away root only
        with pytest.raises(KeyError):
            lookup("tpm-mtls-pki")


def test_no_file_is_anybodys_to_write(root: Root) -> None:
    program = root.folder / "usr/lib/tpm-mtls"
    for path in (program, *program.rglob("*")):
        status = path.lstat()
        assert status.st_uid == 0
        assert path.is_symlink() or not status.st_mode & 0o022, path


def test_the_installed_command_makes_a_device(root: Root, tmp_path: Path, tpm: SimulatedTpm) -> None:
    """By the package's own interpreter and modules; on a real machine they are where the first line says."""
    home = root.folder / "usr/lib/tpm-mtls"
    assert (root.folder / "usr/bin/tpm-mtls").resolve() == home / "bin/tpm-mtls"
    first, _, rest = (home / "bin/tpm-mtls").read_text().partition("\n")
    assert first == "#!/usr/lib/tpm-mtls/bin/python3 -I"
    command = tmp_path / "tpm-mtls"
    command.write_text(f"#!{home}/bin/python3 -I\n{rest}")
    command.chmod(0o755)
    installed = Installed(command, tmp_path)
    assert installed.run("--version").endswith(field_version(root))
    installed.makes_a_device(tpm)


def field_version(root: Root) -> str:
    (version,) = re.findall(r"^Version: (.*)-1$", root.dpkg("--status", "tpm-mtls"), re.MULTILINE)
    return str(version)


def test_it_goes_without_a_trace_but_for_keys(package: Path, tmp_path: Path) -> None:
    (tmp_path / "depends").mkdir()
    root = Root(tmp_path / "root")
    root.prepare()
    root.pretend(field(package, "Depends"), tmp_path / "depends")
    root.dpkg("--install", package)
    identity = root.folder / "var/lib/tpm-mtls/identity.json"
    identity.write_text("{}")
    said = root.dpkg("--purge", "tpm-mtls")
    assert "/var/lib/tpm-mtls is kept" in said
    assert identity.exists()
    for gone in ("usr/lib/tpm-mtls", "etc/tpm-mtls/config.toml", "var/lib/tpm-mtls-pki", "var/lib/tpm-mtls-server"):
        assert not (root.folder / gone).exists()
