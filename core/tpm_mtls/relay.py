"""The way to the TPM through the relay: a TCTI string that starts it, and for which keys that is needed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.configuration import load_configuration, relay_use
from tpm_mtls.errors import StorageError, TctiInvalidError, UsageError
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.policy.files import has_policies
from tpm_mtls.tcti import resolve_tcti

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.key_reference import KeyReference

_PACKAGE = "tpm_mtls_relay"
_ISOLATED = ["-I", "-S"]
_START = "cmd:exec "
_NO_TPM = "device:/dev/null"  # for a relay that is not to speak to any
_CHECK_TIME = 30.0  # seconds; it takes 0.05
_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*")


def relay_tcti(tcti: str, *, policies: Sequence[Path] = (), options: Sequence[str] = ()) -> str:
    """The TCTI string of a relay before the TPM at ``tcti``.

    Args:
        tcti: where the TPM is; any TCTI string, a ``cmd:`` or ``pcap:`` one too.
        policies: folders in which keys' policies are.
        options: more of the relay's options (`tpm_mtls_relay.options`).

    Raises:
        TctiInvalidError: the relay is not installed as files, or there is no Python interpreter to start it with.
    """
    import importlib.util  # noqa: PLC0415 - only where the relay is used

    found = importlib.util.find_spec(_PACKAGE)
    package = Path(found.origin).parent if found is not None and found.origin is not None else None
    if package is None or not package.is_dir():
        raise TctiInvalidError(
            "the TPM relay is not installed",
            hint='install the whole distribution tpm-mtls, unpacked; or do without: relay = "never"',
            tcti=tcti,
        )
    folders = [word for folder in policies for word in ("--policies", str(folder.absolute()))]
    # exec: libtss2 starts it by a shell, which would stay in between, and be what gets its signals
    # the file, not the folder: for a folder Python imports runpy, which takes 4 ms more
    program = [interpreter(tcti), *_ISOLATED, str(package / "__main__.py")]
    return f"{_START}{shlex.join([*program, '--tcti', tcti, *folders, *options])}"


def interpreter(tcti: str, *, executable: str | None = sys.executable, prefix: str = sys.base_exec_prefix) -> str:
    """The Python interpreter that runs the relay: this process's own.

    A program with an embedded interpreter (uwsgi, an application in one file) has none in ``sys.executable``, or
    itself; then it is the one from which that was made.

    Raises:
        TctiInvalidError: there is none, so that the TPM at ``tcti`` cannot be reached through the relay.
    """
    if executable and _INTERPRETER.fullmatch(Path(executable).name):
        return executable
    made_from = Path(prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if made_from.exists():
        return str(made_from)
    raise TctiInvalidError(
        f"the TPM relay needs a Python interpreter, and this program is none ({executable or 'unnamed'})",
        hint=f'install {made_from}, or do without the relay and without policies: relay = "never"',
        tcti=tcti,
    )


def check_options(options: Sequence[str], *, hint: str) -> None:
    """Lets a relay open the files that its ``options`` name: later it can only say a response code.

    Raises:
        UsageError: it cannot; ``hint`` is the advice.
        TctiInvalidError: as `relay_tcti`.
    """
    import subprocess  # noqa: PLC0415 - for development only

    program = shlex.split(relay_tcti(_NO_TPM, options=[*options, "--check"]).removeprefix(_START))
    done = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_CHECK_TIME)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UsageError(said.removeprefix("tpm-mtls relay: "), hint=hint)


def tpm_behind(tcti: str) -> str:
    """Where the TPM is, for a string that `relay_tcti` made; any other ``tcti`` as it is. For a person to read."""
    if not tcti.startswith(_START):
        return tcti
    try:
        words = shlex.split(tcti.removeprefix(_START))
    except ValueError:
        return tcti
    is_relay = words[1:3] == _ISOLATED and len(words) > 5 and Path(words[3]).parent.name == _PACKAGE  # noqa: PLR2004 - the --tcti
    return words[5] if is_relay and words[4] == "--tcti" else tcti


def key_tcti(tcti: str | None, folders: Sequence[Path], *, relay: str | None = None) -> str:
    """The TCTI string by which a program uses a TPM key: of the relay, where the key needs that.

    With ``auto`` it does when there is a policy file in one of ``folders``; a key without policies costs nothing but
    that look. Where a latency model is configured the relay is in between in any case, but changes no command of a key
    that does not need it.

    Args:
        tcti: where the TPM is, as the user gave it; see `tpm_mtls.tcti.resolve_tcti`.
        folders: where the key's policy may lie; see `policy_folders`.
        relay: ``auto``, ``always``, ``never``, or none for what the environment or the configuration says.

    Raises:
        UsageError: another word, or the configuration file is wrong.
        TctiInvalidError, TpmUnavailableError, TpmVersionError: as `resolve_tcti` and `relay_tcti`.
        StorageError: the configuration file cannot be read.
    """
    configuration = load_configuration()
    where = resolve_tcti(tcti)
    use = relay_use(relay, configuration)
    needed = use == "always" or (use == "auto" and any(map(_may_have_policies, folders)))
    options = ["--latency-model", configuration.latency_model] if configuration.latency_model else []
    if options:
        check_options(options, hint="set another latency_model in the configuration file, or none")
    if not needed:
        return relay_tcti(where, options=["--pass-through", *options]) if options else where
    return relay_tcti(where, policies=folders, options=options)


def policy_folders(key: KeyReference, *beside: Path) -> list[Path]:
    """The folders in which a policy of ``key`` may lie: its own, and those of the files ``beside``, its certificate
    say; for a key at a handle the device's identity folder, too.
    """  # noqa: D205 - one sentence
    folders = [path.absolute().parent for path in beside]
    if isinstance(key, KeyFile):
        return list(dict.fromkeys([key.path.absolute().parent, *folders]))
    from tpm_mtls.identity import DEFAULT_FOLDER  # noqa: PLC0415 - imports msgspec

    return list(dict.fromkeys([*folders, DEFAULT_FOLDER]))


def _may_have_policies(folder: Path) -> bool:
    try:
        return has_policies(folder)
    except StorageError:  # it may be opened by who knows its files' names, but not be listed: keys without policies do
        return False
