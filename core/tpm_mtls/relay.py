"""The way to the TPM through the relay: a TCTI string that starts it."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.errors import TctiInvalidError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGE = "tpm_mtls_relay"


def relay_tcti(tcti: str, *, policies: Sequence[Path] = (), options: Sequence[str] = ()) -> str:
    """The TCTI string of a relay before the TPM at ``tcti``.

    Args:
        tcti: where the TPM is.
        policies: folders in which keys' policies are.
        options: more of the relay's options (`tpm_mtls_relay.options`).

    Raises:
        TctiInvalidError: the relay is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise TctiInvalidError(
            "the TPM relay is not installed", hint="install the whole distribution tpm-mtls", tcti=tcti
        )
    folders = [word for folder in policies for word in ("--policies", str(folder.absolute()))]
    # exec: libtss2 starts it by a shell, which would stay in between, and be what gets its signals
    program = [sys.executable, "-I", "-S", str(Path(found.origin).parent)]
    return f"cmd:exec {shlex.join([*program, '--tcti', tcti, *folders, *options])}"
