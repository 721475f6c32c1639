"""The openssl program with the tpm2 provider: the outside user of our key files."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tpm_mtls.openssl.provider import modules_folder

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

MODULES = modules_folder()  # the environment's own on Debian 12, the system's on Debian 13


def openssl_tpm(
    tpm: SimulatedTpm, *command: str, stdin: bytes = b"", check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Runs ``openssl COMMAND -provider tpm2 -provider default …`` against ``tpm``."""
    name, *rest = command
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    return subprocess.run(
        ["openssl", name, "-provider", "tpm2", "-provider", "default", *rest],
        env=environment | {"OPENSSL_MODULES": str(MODULES), "TPM2OPENSSL_TCTI": tpm.tcti},
        input=stdin,
        capture_output=True,
        check=check,
        timeout=60,
    )
