"""One request to the CA over TLS with the device key: a program, ``python -m tpm_mtls_keygen.device_request``.

It reads a `Job` from its standard input and writes a `Result` to its standard output, both as JSON. It uses OpenSSL's
tpm2 provider, and neither `tpm_mtls.tpm` nor anything else of tpm2-pytss: see `tpm_mtls_keygen.device_transport`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context
from tpm_mtls_keygen.est_transport import Answer, HttpsTransport, Request, Timeouts
from tpm_mtls_keygen.est_url import EstUrl


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent, whereto and as whom; see `DeviceTransport`."""

    url: str
    key: str
    certificate: str
    trust: str
    tcti: str | None
    authorization: bytes | None
    timeouts: Timeouts
    request: Request


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; or the error: the name of its class, its text, its hint, and its other attributes."""

    answer: Answer | None = None
    kind: str = ""
    message: str = ""
    hint: str = ""
    facts: dict[str, Any] = {}


def perform(job: Job) -> Result:
    """Sends it; every error of the project becomes part of the result."""
    identity = Identity(parse_key_reference(job.key), Path(job.certificate), Path(job.trust))
    authorization = Secret(job.authorization) if job.authorization is not None else None
    try:
        context = client_context(identity, tcti=job.tcti, authorization=authorization)
        with HttpsTransport(EstUrl.parse(job.url), context, job.timeouts) as transport:
            return Result(answer=transport.send(job.request))
    except TpmMtlsError as error:
        facts = {name: value for name, value in vars(error).items() if name != "hint"}
        return Result(kind=type(error).__name__, message=str(error), hint=error.hint, facts=facts)


def main() -> None:
    """The program."""
    result = perform(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
