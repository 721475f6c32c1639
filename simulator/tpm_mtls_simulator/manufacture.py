"""What a TPM maker does once: seeds, endorsement keys, and certificates for these from the maker's CA.

swtpm_setup makes an RSA-2048 endorsement key (certificate at NV 0x01C00002) and an ECC P-384 one (0x01C00016).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm_mtls.errors import SimulatorError
from tpm_mtls.files import make_folder, storage_errors
from tpm_mtls_simulator.programs import clean_environment, require_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TIMEOUT = 60.0  # seconds; RSA keys are searched for: a second on a fast machine, many on a small board


def manufacture(state: Path, *, ca: Path, ek_certificates: bool) -> None:
    """Makes a new TPM in the folder ``state``, which must not exist; nothing is left there on failure.

    Args:
        state: folder for the TPM's non-volatile memory.
        ca: folder of the maker's CA (keys and certificates of its root and its intermediate), made if absent.
        ek_certificates: whether to make endorsement keys with certificates.

    Raises:
        SimulatorError: swtpm's tools are not installed or fail.
        StorageError: a folder cannot be written.
    """
    unfinished = state.with_name(f"{state.name}.unfinished")
    with storage_errors(state, "make"):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        make_folder(unfinished, mode=0o700)
        if ek_certificates:
            require_program("swtpm_localca", "swtpm-tools")
            _make_endorsement_keys(unfinished, ca)
        unfinished.rename(state)


def _make_endorsement_keys(state: Path, ca: Path) -> None:
    make_folder(ca, mode=0o700)
    configuration = _write_configuration(ca)
    command = [
        *("swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(configuration)),
        *("--create-ek-cert", "--lock-nvram", "--overwrite", "--write-ek-cert-files", str(state)),
    ]
    with _locked(ca):
        outcome = subprocess.run(
            command,
            env=clean_environment() | {"XDG_CONFIG_HOME": str(ca)},  # so that nobody's own configuration is read
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT,
            check=False,
        )
    if outcome.returncode != 0:
        lines = outcome.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise SimulatorError(f"swtpm_setup failed: {lines[-1].lower()}", hint="see man swtpm_setup, man swtpm_localca")


def _write_configuration(ca: Path) -> Path:
    """Three small files that keep swtpm's CA, keys and serial numbers inside the folder ``ca``."""
    localca = ca / "swtpm-localca.conf"
    localca.write_text(
        f"statedir = {ca}\n"
        f"signingkey = {ca}/signkey.pem\n"
        f"issuercert = {ca}/issuercert.pem\n"
        f"certserial = {ca}/certserial\n"
    )
    options = ca / "swtpm-localca.options"
    options.write_text("--platform-manufacturer tpm-mtls\n--platform-version 1.0\n--platform-model simulator\n")
    setup = ca / "swtpm_setup.conf"
    setup.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {localca}\n"
        f"create_certs_tool_options = {options}\n"
    )
    return setup


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One TPM at a time is made by one CA: swtpm_localca keeps its next serial number in a file."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
