"""The doctor's two children: asked, and ended in time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from tpm_mtls.children import PATIENCE, child_environment
from tpm_mtls.errors import TpmMtlsError, TpmUnavailableError

if TYPE_CHECKING:
    from tpm_mtls.doctor.openssl_report import OpensslJob
    from tpm_mtls.doctor.tpm_report import TpmJob

R = TypeVar("R", bound=msgspec.Struct)

TPM: Final = "tpm_mtls.doctor.tpm_report"
OPENSSL: Final = "tpm_mtls.doctor.openssl_report"

PATIENCE_TPM: Final = 30.0
"""Seconds for the TPM's answers: fifteen commands, and making an endorsement key where it is not the known TPM."""

PATIENCE_OPENSSL: Final = 90.0
"""Seconds for loading the key, a signature, and two servers that do not answer."""


def ask_child(program: str, job: TpmJob | OpensslJob, answer: type[R], *, patience: float) -> R:
    """What ``program`` answers to ``job``.

    Raises:
        TpmUnavailableError: it does not answer within ``patience`` seconds. It is ended by SIGTERM, so that it leaves
            nothing in the TPM, and else by SIGKILL.
        TpmMtlsError: it ended without an answer.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", program]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(program)) as child:
        try:
            said, complaint = child.communicate(msgspec.json.encode(job), timeout=patience)
        except subprocess.TimeoutExpired as error:
            _end(child)
            raise _late(program, str(job.tcti), patience) from error
        except BaseException:
            _end(child)
            raise
    try:
        return msgspec.json.decode(said, type=answer)
    except msgspec.DecodeError as error:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise TpmMtlsError(
            f"{program} ended without an answer (status {child.returncode}): {last[:200]}",
            hint="is the installation whole? libtss2 and tpm2-pytss must fit together",
        ) from error


def _late(program: str, tcti: str, patience: float) -> TpmUnavailableError:
    if program == OPENSSL:
        return TpmUnavailableError(
            f"trying the device's key and the servers did not end within {patience:g} seconds",
            hint="does the name service answer (getent hosts NAME)? else the TPM hangs: restart it",
            tcti=tcti,
        )
    return TpmUnavailableError(
        f"the TPM at {tcti} does not answer within {patience:g} seconds",
        hint="does another program hold it, such as tpm2-abrmd? end that, or name its --tcti",
        tcti=tcti,
    )


def _environment(program: str) -> dict[str, str]:
    """OpenSSL's own configuration is for that child only: it may load the provider, which opens the TPM too."""
    own = child_environment()
    if program != OPENSSL:
        own.pop("OPENSSL_CONF", None)
    return {"TSS2_LOG": "all+none"} | own  # libtss2 writes lines of its own to stderr


def _end(child: subprocess.Popen[Any]) -> None:
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
