"""Running swtpm's programs."""

from __future__ import annotations

import os
import shutil

from tpm_mtls.errors import SimulatorError


def clean_environment() -> dict[str, str]:
    """The environment without what would make swtpm load OpenSSL's tpm2 provider, and so wait for itself."""
    return {name: value for name, value in os.environ.items() if name not in {"OPENSSL_CONF", "OPENSSL_MODULES"}}


def require_program(name: str, package: str) -> None:
    """Refuses to go on without the program ``name``.

    Raises:
        SimulatorError: it is not on the PATH.
    """
    if shutil.which(name) is None:
        raise SimulatorError(
            f"the program {name} is not installed", hint=f"install the package {package}; ./run setup does it"
        )
