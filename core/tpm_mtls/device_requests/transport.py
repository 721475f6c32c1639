"""Sends a request as the device itself: over TLS with the device key, in a process of its own.

What the child gets, the key's authorization value among it, goes through a pipe: nobody else can see it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls import errors
from tpm_mtls.children import child_environment, end_child
from tpm_mtls.device_requests.messages import BODY_LIMIT, Answer, Job, Request, Result, Server, Timeouts
from tpm_mtls.errors import TpmMtlsError, UsageError

if TYPE_CHECKING:
    from tpm_mtls.authorization import Secret
    from tpm_mtls.identity import Identity

_START: Final = 60.0  # seconds for starting Python and loading the key, on a slow board with a slow TPM

_CHILD = "tpm_mtls.device_requests.child"


@dataclass(frozen=True)
class DeviceTransport:
    """A `tpm_mtls.device_requests.messages.Transport` to ``server``, with the identity of the device.

    Attributes:
        server: whom to ask.
        identity: key, certificate and trust anchors.
        tcti: where the TPM is; where it has no resource manager, nobody in this process may have it open.
        authorization: the key's authorization value, if it has one.
        timeouts: for connection and answer.
    """

    server: Server
    identity: Identity
    tcti: str | None = None
    authorization: Secret | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)

    def send(self, request: Request) -> Answer:
        """As `Transport.send`; besides:

        Raises:
            TpmUnavailableError, TpmRefusedError, CredentialError, OpensslError, StorageError: as
                `tpm_mtls.tls.client_context`.
            UsageError: the body is larger than `BODY_LIMIT`.
        """  # noqa: D415 - the sentence goes on in the list
        job = self._job(request)
        try:
            ended = subprocess.run(
                _command(),
                input=job,
                stdout=subprocess.PIPE,
                check=False,
                timeout=self._patience,
                env=child_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise self.server.unreachable("did not answer in time") from error
        return _unpack(ended.stdout, self.server)

    async def send_async(self, request: Request) -> Answer:
        """As `send`, while the event loop goes on; where its task is cancelled, the child is ended and waited for."""
        job = self._job(request)
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*_command(), stdin=pipe, stdout=pipe, env=child_environment())
        try:
            async with asyncio.timeout(self._patience):
                said, _ = await child.communicate(job)
        except TimeoutError as error:
            raise self.server.unreachable("did not answer in time") from error
        finally:
            await end_child(child)
        return _unpack(said, self.server)

    @property
    def _patience(self) -> float:
        return _START + self.timeouts.exchange

    def _job(self, request: Request) -> bytes:
        if request.body is not None and len(request.body) > BODY_LIMIT:
            raise UsageError(
                f"the request to {self.server} is {len(request.body)} bytes long",
                hint=f"no more than {BODY_LIMIT} bytes are sent at once",
            )
        return msgspec.json.encode(
            Job(
                server=self.server,
                key=str(self.identity.key),
                certificate=str(self.identity.certificate),
                trust=str(self.identity.trust),
                tcti=self.tcti,
                authorization=self.authorization.value if self.authorization else None,
                timeouts=self.timeouts,
                request=request,
            )
        )


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", _CHILD]


def _unpack(said: bytes, server: Server) -> Answer:
    try:
        result = msgspec.json.decode(said, type=Result)
    except msgspec.DecodeError as error:
        raise TpmMtlsError(
            f"the process that speaks to {server.role} ended without a result", hint="what it said stands above"
        ) from error
    if result.answer is not None:
        return result.answer
    kind = getattr(errors, result.kind, TpmMtlsError)
    raise kind(result.message, hint=result.hint, **result.facts)
