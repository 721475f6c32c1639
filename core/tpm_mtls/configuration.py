"""What a machine's administrator chooses for all programs: ``/etc/tpm-mtls/config.toml``.

    relay = "auto"                  # "always", "never"; see docs/decisions/0004
    tcti = "device:/dev/tpmrm0"     # where the TPM is
    latency_model = "slb9670"       # development: a simulated TPM as slow as that chip; or a file

$TPM_MTLS_CONFIG names another file. An argument (``--relay``, ``--tcti``) goes before the environment (TPM_MTLS_RELAY,
TPM_MTLS_TCTI), and that before the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tpm_mtls.errors import StorageError, UsageError
from tpm_mtls.files import read_capped

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/tpm-mtls/config.toml")
FILE_VARIABLE = "TPM_MTLS_CONFIG"
RELAY_VARIABLE = "TPM_MTLS_RELAY"

RelayUse = Literal["auto", "always", "never"]
"""When a key is used through the relay: only where it has a policy, always, or never."""

RELAY_USES: tuple[RelayUse, ...] = get_args(RelayUse)

_LIMIT = 64 * 1024  # bytes; the file has three lines
_KEYS = ("relay", "tcti", "latency_model")


@dataclass(frozen=True)
class Configuration:
    """The file's settings; none where it says nothing.

    Attributes:
        relay: when keys are used through the relay.
        tcti: where the TPM is.
        latency_model: name or absolute path of a model of a chip's slowness.
    """

    relay: RelayUse | None = None
    tcti: str | None = None
    latency_model: str | None = None


def load_configuration(environment: Mapping[str, str] = os.environ, *, default: Path = DEFAULT_FILE) -> Configuration:
    """The settings in the file that ``environment`` names, else in ``default``, which need not be there.

    Raises:
        UsageError: it is no TOML, has an unknown setting, or one with a wrong value.
        StorageError: it cannot be read, or the environment names one that is not there.
        PemError: it is oversized.
    """
    named = environment.get(FILE_VARIABLE)
    path = Path(named) if named else default
    if not path.exists():
        if not named:
            return Configuration()
        raise StorageError(
            f"${FILE_VARIABLE} names {path}, which is not there", hint=f"unset {FILE_VARIABLE}", path=str(path)
        )
    return parse_configuration(read_capped(path, limit=_LIMIT), path)


def parse_configuration(data: bytes, path: Path) -> Configuration:
    """The settings in ``data``, which was in the file ``path``.

    Raises:
        UsageError: as `load_configuration`.
    """
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        found = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML: {error}", hint='expected lines such as relay = "auto"') from error
    for name, value in found.items():
        if name not in _KEYS:
            raise UsageError(f"{path} has an unknown setting: {name[:40]!r}", hint=f"known ones: {', '.join(_KEYS)}")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path}: {name} is no text", hint=f'expected a line such as {name} = "…"')
    relay, model = found.get("relay"), found.get("latency_model")
    return Configuration(
        relay=_relay_use(relay, f"{path}: relay") if relay is not None else None,
        tcti=found.get("tcti"),
        latency_model=str(path.absolute().parent / model) if model is not None and _is_file(model) else model,
    )


def _is_file(model: str) -> bool:
    return "/" in model or model.endswith(".toml")


def relay_use(
    explicit: str | None, configuration: Configuration, environment: Mapping[str, str] = os.environ
) -> RelayUse:
    """When keys are used through the relay: ``explicit``, else $TPM_MTLS_RELAY, else the configuration, else ``auto``.

    Raises:
        UsageError: another word.
    """
    if explicit is not None:
        return _relay_use(explicit, "relay")
    if named := environment.get(RELAY_VARIABLE):
        return _relay_use(named, f"${RELAY_VARIABLE}")
    return configuration.relay or "auto"


def _relay_use(text: str, where: str) -> RelayUse:
    if text not in RELAY_USES:
        raise UsageError(f"{where} is {text[:40]!r}", hint=f"expected one of {', '.join(RELAY_USES)}")
    return text
