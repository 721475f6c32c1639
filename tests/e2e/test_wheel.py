"""The wheel and the sdist, tried after installation into an environment that has only what they require."""

from __future__ import annotations

import subprocess
import sys
import venv
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from support.installed import NOUNS, ROOT, Installed, build, once

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


def _build_wheel(folder: Path) -> None:
    build("wheel", ROOT, folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = once(tmp_path_factory, "wheel", _build_wheel).glob("*.whl")
    return built


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The unpacked sdist."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-xf", build("sdist", ROOT, tmp_path), "-C", folder], check=True, timeout=60)
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment into which pip has put the wheel, and its requirements before."""

    def make(folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        subprocess.run([sys.executable, ROOT / "scripts" / "vendor.py", wheel, site], check=True, timeout=60)
        subprocess.run([*pip(folder), wheel], check=True, timeout=60)  # fails where a requirement is not met

    return once(tmp_path_factory, "environment", make)


def pip(environment: Path) -> list[str | Path]:
    """An installation into ``environment`` without a network."""
    command = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "--disable-pip-version-check"]
    return [*command, "install", "--quiet", "--no-index", "--no-compile"]


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_all_components_and_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    packages = {name.partition("/")[0] for name in names}
    parts = ("agent", "client", "keygen", "pki", "relay", "server", "simulator")
    assert packages == {"tpm_mtls", *(f"tpm_mtls_{part}" for part in parts), "tpm_mtls-0.1.0.dist-info"}
    assert "tpm_mtls/py.typed" in names
    assert "tpm_mtls-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_sdist_makes_the_same_wheel_and_has_what_distributions_need(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    assert contents(build("wheel", source, tmp_path)) == contents(wheel)
    for part in ("packaging/systemd/tpm-mtls-agent.service", "packaging/debian/build.sh", "constraints.txt", "run"):
        assert (source / part).exists()
    assert {path.name for path in source.iterdir()} <= {
        *(path.name for path in ROOT.iterdir()),
        "PKG-INFO",
    }
    assert not any(source.rglob("*.pyc"))


def test_each_components_command_is_there(environment: Path, tmp_path: Path) -> None:
    """One process asks all of them, as each start takes longer than its answer."""
    asking = f"from tpm_mtls.cli import run\nfor noun in {NOUNS}:\n    assert run([noun, '--help']) == 0"
    said = Installed(environment / "bin" / "python", tmp_path).run("-I", "-c", asking)
    for noun in NOUNS:
        assert f" {noun} [OPTIONS]" in said


def test_a_requirement_that_is_missing_is_noticed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False, symlinks=True)
    done = subprocess.run([*pip(tmp_path), wheel], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "No matching distribution found" in done.stderr


def test_a_device_is_made_with_what_is_installed(environment: Path, tmp_path: Path, tpm: SimulatedTpm) -> None:
    Installed(environment / "bin" / "tpm-mtls", tmp_path).makes_a_device(tpm)
