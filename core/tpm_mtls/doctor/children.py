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
        TpmUnavailableError: it does not answer within ``patience`` seconds: it waits for the TPM, which alone can be so
            late. It is ended by SIGTERM, so that it leaves nothing in the TPM, and else by SIGKILL.
        TpmMtlsError: it ended without an answer.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", program]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()) as child:
        try:
            said, complaint = child.communicate(msgspec.json.encode(job), timeout=patience)
        except subprocess.TimeoutExpired as error:
            _end(child)
            raise TpmUnavailableError(
                f"the TPM at {job.tcti} does not answer within {patience:g} seconds",
                hint="does another program hold it, such as tpm2-abrmd? end that, or name its --tcti",
                tcti=str(job.tcti),
            ) from error
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


def _environment() -> dict[str, str]:
    # libtss2 writes lines of its own to stderr
    return {"TSS2_LOG": "all+none"} | child_environment()


def _end(child: subprocess.Popen[Any]) -> None:
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
