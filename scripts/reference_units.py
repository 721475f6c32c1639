"""What the systemd units take from /etc/tpm-mtls, as Markdown: read from the units, said here in words for a user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parents[1] / "packaging" / "systemd"

SETTINGS = {
    "CA": "the CA's URL",
    "CRL_URL": "where the CA's list of revoked certificates is",
    "LISTEN": "HOST:PORT to listen at",
    "NAME": "the CA's name in its own TLS certificate",
    "OPTIONS": "more options of the command",
    "TRUST": "the CA's root certificate",
}
"""What each variable of a file of settings is for."""

FILES = {
    "bootstrap-token": "the one-time token, where a device enrolls with one; 0600",
    "ca-passphrase.cred": "the CA's passphrase, sealed by the TPM with `systemd-creds`",
    "ca.passphrase": "the CA's passphrase; 0600",
    "ca.pem": "the CA's root certificate: whom device and backend believe",
    "hardening.toml": "how the TPM is to be hardened",
    "server.key.pem": "the backend's key; 0600",
    "server.pem": "the backend's certificate, then its issuers",
}
"""What every other file is."""

_FOLDER = "/etc/tpm-mtls/"
_PATH = re.compile(rf"{_FOLDER}([\w.-]+)")
_USED = re.compile(r"(?<!\$)\$\{?([A-Z_]+)")


def read_settings(folder: Path) -> dict[str, dict[str, str | None]]:
    """What each file of settings may say, with what holds if it does not: none where it must."""
    settings: dict[str, dict[str, str | None]] = {}
    for unit in sorted(folder.glob("*.service")):
        text = _said(unit)
        defaults = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
        commands = " ".join(re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE))
        for file in re.findall(rf"^EnvironmentFile=-?{_FOLDER}(.*)$", text, re.MULTILINE):
            for variable in _USED.findall(commands):
                if variable != "CREDENTIALS_DIRECTORY":
                    settings.setdefault(file, {}).setdefault(variable, defaults.get(variable))
    return dict(sorted(settings.items()))


def read_files(folder: Path) -> dict[str, list[str]]:
    """The other files in /etc/tpm-mtls, with the units that read them; of drop-ins, what no unit reads."""
    files: dict[str, list[str]] = {}
    for unit in sorted(folder.glob("*.service")):
        for file in dict.fromkeys(_PATH.findall(_said(unit))):
            files.setdefault(file, []).append(unit.name)
    for drop_in in sorted(folder.glob("drop-ins/*/*.conf")):
        for file in _PATH.findall(_said(drop_in)):
            files.setdefault(file, [f"{drop_in.parent.name}/{drop_in.name}"])
    return {name: units for name, units in sorted(files.items()) if not name.endswith(".env")}


def _said(unit: Path) -> str:
    return re.sub(r"^#.*$", "", unit.read_text(), flags=re.MULTILINE)


def units_section() -> Iterator[str]:
    """The section of the page of the configuration.

    Raises:
        KeyError: a unit reads something that this module has no words for.
    """
    yield "## The services: /etc/tpm-mtls"
    yield "The systemd units read these files; which unit does what is on the [install page](../how-to/install.md)."
    yield "\n".join(
        ["| file | setting | what for | by default |", "|---|---|---|---|"]
        + [
            f"| `{name}` | `{variable}` | {SETTINGS[variable]} | {_default(default)} |"
            for name, variables in read_settings(UNITS).items()
            for variable, default in variables.items()
        ]
    )
    yield "\n".join(
        ["| file | what it is | read by |", "|---|---|---|"]
        + [f"| `{name}` | {FILES[name]} | {', '.join(units)} |" for name, units in read_files(UNITS).items()]
    )


def _default(value: str | None) -> str:
    if value is None:
        return "must be said"
    return f"`{value}`" if value else "none"
