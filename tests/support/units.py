"""The files in ``packaging/systemd``, read as systemd reads them, and systemd's own judgement of them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
FOLDER = PACKAGING / "systemd"
UNITS = sorted(path for path in FOLDER.iterdir() if path.is_file())
SERVICES = [path for path in UNITS if path.suffix == ".service"]
DROP_INS = sorted(FOLDER.glob("drop-ins/*.d/*.conf"))
COMMAND = "/usr/bin/tpm-mtls"
EXPOSURE = 3.0  # of 10, by systemd-analyze security

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the package systemd")

_EXAMPLES = {
    "CA": "https://ca.example:8443",
    "TRUST": "/etc/tpm-mtls/ca.pem",
    "LISTEN": "192.0.2.1:8443",
    "NAME": "ca.example",
    "CREDENTIALS_DIRECTORY": "/run/credentials/unit",
    "CRL_URL": "https://ca.example:8443/crl/issuing.crl",
    "MAINPID": "1",
}


def settings(unit: Path, name: str) -> list[str]:
    """All values of a unit's setting, in order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), flags=re.MULTILINE)


def setting(unit: Path, name: str) -> str:
    """The last value of a unit's setting."""
    return settings(unit, name)[-1]


def command(unit: Path) -> list[str]:
    """The words of the last command that a unit starts, its variables replaced by examples.

    Raises:
        KeyError: a variable that no file is said to set.
    """
    words = shlex.split(setting(unit, "ExecStart"))
    given = [word for word in words if word != "$OPTIONS"]
    return [re.sub(r"\$\{(\w+)\}", lambda found: _EXAMPLES[found[1]], word) for word in given]


def installed(folder: Path) -> dict[str, Path]:
    """Copies of all units in ``folder``, by name, with the command where it is on this machine."""
    copies = {}
    for unit in UNITS:
        copies[unit.name] = folder / unit.name
        copies[unit.name].write_text(_here(unit))
    return copies


def install_drop_in(folder: Path, drop_in: Path) -> None:
    """Copies ``drop_in`` beside the units in ``folder``, to where systemd reads it."""
    place = folder / drop_in.parent.name
    place.mkdir()
    (place / drop_in.name).write_text(_here(drop_in))


def _here(unit: Path) -> str:
    return unit.read_text().replace(COMMAND, str(Path(sys.executable).with_name("tpm-mtls")))


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``systemd-analyze``."""
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def looks_offline() -> bool:
    """Whether this systemd judges units that do not run."""
    return "--offline" in analyze("--help").stdout


def is_tight(unit: Path) -> subprocess.CompletedProcess[str]:
    """``systemd-analyze security`` of ``unit``: it fails above `EXPOSURE`."""
    return analyze("security", "--offline=true", f"--threshold={round(EXPOSURE * 10)}", unit)
