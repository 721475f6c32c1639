"""Sends a request to the CA as the device itself: over TLS with the device key, in a process of its own.

A process speaks either to OpenSSL's provider, which TLS with a TPM key needs, or to tpm2-pytss, never both. So whoever
has the TPM open to collect evidence closes it, and lets a child (`tpm_mtls_keygen.device_request`) send the request.
What the child gets, the key's authorization value among it, goes through a pipe: nobody else can see it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls import errors
from tpm_mtls.errors import PeerUnreachableError, TpmMtlsError
from tpm_mtls_keygen.device_request import Job, Result
from tpm_mtls_keygen.est_transport import Answer, Request, Timeouts

if TYPE_CHECKING:
    from tpm_mtls.authorization import Secret
    from tpm_mtls.identity import Identity
    from tpm_mtls_keygen.est_url import EstUrl

_START: Final = 60.0  # seconds for starting Python and loading the key, on a slow board with a slow TPM


@dataclass(frozen=True)
class DeviceTransport:
    """A `tpm_mtls_keygen.est_transport.Transport` to the server at ``url``, with the identity of the device.

    Attributes:
        url: the EST server.
        identity: key, certificate and trust anchors.
        tcti: where the TPM is; nobody in this process may have it open.
        authorization: the key's authorization value, if it has one.
        timeouts: for connection and answer.
    """

    url: EstUrl
    identity: Identity
    tcti: str | None = None
    authorization: Secret | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)

    def send(self, request: Request) -> Answer:
        """As `Transport.send`; besides:

        Raises:
            TpmUnavailableError, TpmRefusedError, CredentialError, OpensslError, StorageError: as
                `tpm_mtls.tls.client_context`.
        """  # noqa: D415 - the sentence goes on in the list
        job = Job(
            url=str(self.url),
            key=str(self.identity.key),
            certificate=str(self.identity.certificate),
            trust=str(self.identity.trust),
            tcti=self.tcti,
            authorization=self.authorization.value if self.authorization else None,
            timeouts=self.timeouts,
            request=request,
        )
        command = [sys.executable, "-P", "-m", "tpm_mtls_keygen.device_request"]
        try:
            ended = subprocess.run(
                command,
                input=msgspec.json.encode(job),
                stdout=subprocess.PIPE,
                check=False,
                timeout=_START + self.timeouts.exchange,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerUnreachableError(
                f"the CA at {self.url} did not answer in time",
                hint="check the network and whether the CA runs; --wait SECONDS keeps trying",
                host=self.url.host,
            ) from error
        return _unpack(ended.stdout)


def _unpack(said: bytes) -> Answer:
    try:
        result = msgspec.json.decode(said, type=Result)
    except msgspec.DecodeError as error:
        raise TpmMtlsError(
            "the process that speaks to the CA ended without a result", hint="what it said stands above"
        ) from error
    if result.answer is not None:
        return result.answer
    kind = getattr(errors, result.kind, TpmMtlsError)
    raise kind(result.message, hint=result.hint, **result.facts)
