"""One request over TLS with the device key: a program, ``python -m tpm_mtls.device_requests.child``.

It reads a `Job` from its standard input and writes a `Result` to its standard output, both as JSON. It uses OpenSSL's
tpm2 provider, and neither `tpm_mtls.tpm` nor anything else of tpm2-pytss: see `tpm_mtls.device_requests`.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.authorization import Secret
from tpm_mtls.device_requests.https import HttpsTransport
from tpm_mtls.device_requests.messages import Job, Result
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context

if TYPE_CHECKING:
    from types import FrameType


def perform(job: Job) -> Result:
    """Sends it; every error of the project becomes part of the result."""
    identity = Identity(parse_key_reference(job.key), Path(job.certificate), Path(job.trust))
    authorization = Secret(job.authorization) if job.authorization is not None else None
    try:
        context = client_context(identity, tcti=job.tcti, authorization=authorization)
        with HttpsTransport(job.server, context, job.timeouts) as transport:
            return Result(answer=transport.send(job.request))
    except TpmMtlsError as error:
        facts = {name: value for name, value in vars(error).items() if name[0] != "_"}
        return Result(kind=type(error).__name__, message=str(error), hint=error.hint, facts=facts)


def main() -> None:
    """The program. SIGTERM ends it in order: nothing of it stays loaded in a TPM without resource manager."""
    signal.signal(signal.SIGTERM, _end)
    result = perform(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    sys.stdout.buffer.write(msgspec.json.encode(result))
    sys.stdout.buffer.flush()  # before Python and OpenSSL end, each of which can fail


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
