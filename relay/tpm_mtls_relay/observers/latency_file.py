"""Files that say how slow a chip is; `models` has some, made from published figures.

    description = "…"       # both are for the reader only
    source = "…"
    default = 5             # milliseconds
    Hash = 10
    [Sign]
    ecc-p256 = 60
    rsa-2048 = 150
    default = 100           # any other key; without it the default of all commands

Commands are written as `tpm-mtls trace` shows them, in small or capital letters.
"""

from __future__ import annotations

import os

from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages.command_names import COMMAND_NAMES
from tpm_mtls_relay.observers.latency import DEFAULT, Model

SIZE_LIMIT = 64 * 1024
"""Bytes; the longest shipped one has less than 2,000."""

LONGEST = 300_000
"""Milliseconds for one command: the longest that programs wait for a TPM (`transport.PATIENCE`)."""

KINDS = ("ecc-p256", "ecc-p384", "ecc-p521", "rsa-1024", "rsa-2048", "rsa-3072", "rsa-4096", "keyedhash", "symcipher")
"""Kinds of keys that a command may have a figure of its own for."""

_FOR_THE_READER = ("description", "source")
_MODELS = "models"


def model_path(name: str) -> str:
    """The file of the model ``name``: a shipped one by its name, any other by its path.

    Raises:
        OptionError: no shipped one has that name, and it is no path.
    """
    if "/" in name or name.endswith(".toml"):
        return name
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), _MODELS)  # noqa: PTH100, PTH118, PTH120 - pathlib is slow to import
    shipped = sorted(file.removesuffix(".toml") for file in os.listdir(folder))  # noqa: PTH208 - the same
    if name not in shipped:
        raise OptionError(f"there is no latency model {name[:60]!r}: name one of {', '.join(shipped)}, or a file")
    return f"{folder}/{name}.toml"


def load_model(name: str) -> Model:
    """The model in the file ``name``, or the shipped one of that name.

    Raises:
        OptionError: it is not there, cannot be read, or is no model.
    """
    path = model_path(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise OptionError(f"cannot read the latency model {path}: {(error.strerror or str(error)).lower()}") from error
    return parse_model(data, path)


def parse_model(data: bytes, path: str) -> Model:
    """The model that ``data`` is, which was in the file ``path``.

    Raises:
        OptionError: it is no model.
    """
    import tomllib  # noqa: PLC0415 - only if asked for; it takes 10 ms

    if len(data) > SIZE_LIMIT:
        raise OptionError(f"the latency model {path} is larger than {SIZE_LIMIT} bytes")
    try:
        found = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"the latency model {path} is no TOML: {error}") from error
    if DEFAULT not in found:
        raise OptionError(f"the latency model {path} has no default")
    names = {name.lower(): name for name in COMMAND_NAMES.values()}
    commands: dict[str, dict[str, float]] = {}
    for key, value in found.items():
        where = f"the latency model {path}: {key[:60]}"
        if key in _FOR_THE_READER:
            if not isinstance(value, str):
                raise OptionError(f"{where} is no text")
        elif key != DEFAULT:
            name = names.get(key.lower())
            if name is None:
                raise OptionError(f"{where} is no command of the TPM")
            if name in commands:
                raise OptionError(f"{where} is there twice")
            commands[name] = _by_kind(value, where)
    return Model(_seconds(found[DEFAULT], f"the latency model {path}: default"), commands)


def _by_kind(value: object, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        return {DEFAULT: _seconds(value, where)}
    for kind in value:
        if kind not in {*KINDS, DEFAULT}:
            raise OptionError(f"{where}: {str(kind)[:60]} is no kind of key; known are {', '.join(KINDS)}")
    return {kind: _seconds(number, f"{where}: {kind}") for kind, number in value.items()}


def _seconds(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST:  # false for nan
        return value / 1000
    raise OptionError(f"{where} is no number of milliseconds from 0 to {LONGEST}")
