"""Whether this Python's OpenSSL can use a TPM key, and reach servers with it; tried in a process of its own.

``python -m tpm_mtls.doctor.openssl_report``: reads an `OpensslJob` from its standard input, writes an `OpensslReport`.
"""

from __future__ import annotations

import os
import platform
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from tpm_mtls.device_requests.messages import Request, Server, Timeouts
from tpm_mtls.doctor.findings import Failed, failed
from tpm_mtls.errors import TpmMtlsError

if TYPE_CHECKING:
    from types import FrameType

    from tpm_mtls.device_requests.messages import Answer
    from tpm_mtls.identity import Identity
    from tpm_mtls.tls import IdentityContext

_TIMEOUTS: Final = Timeouts(step=5.0, exchange=10.0)
_REASON_LIMIT: Final = 200  # characters

Role: TypeAlias = Literal["CA", "backend"]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A server to be tried.

    Attributes:
        role: who it is.
        server: where it is.
        path: what is asked for.
        named: whether the user asked for it.
    """

    role: Role
    server: Server
    path: str
    named: bool = True


class OpensslJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be tried.

    Attributes:
        tcti: where the TPM is; none where it is known not to answer: then no key is tried.
        folder: the identity folder; empty if it has no identity.
        trust: PEM file that says whom to trust; empty if there is none.
        peers: servers.
        protected: whether the device's key has an authorization value: then it is not tried.
        lost: whether it is known that the key, or what belongs to it, is not there: then it is not tried, either.
    """

    tcti: str | None
    folder: str
    trust: str
    peers: tuple[Peer, ...] = ()
    protected: bool = False
    lost: bool = False


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a server answered.

    Attributes:
        peer: which one.
        status: its HTTP status; 0 without an answer.
        reason: why it refuses, in its own words; empty where it does not say.
        error: why there is none.
        untried: it wants the device's certificate, and there is no key that signs for it.
    """

    peer: Peer
    status: int = 0
    reason: str = ""
    error: Failed | None = None
    untried: bool = False


class _Refusal(msgspec.Struct):
    error: str = ""


class OpensslReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        python: version, and path of the interpreter.
        openssl: version.
        unusable: why OpenSSL makes no TLS connection at all; empty if it does.
        linkage: why its functions cannot be reached; none if they can.
        modules: folder of the provider.
        provider: the provider's version; empty if it was not loaded.
        provider_error: why it was not found, or does not load.
        key: ``signed``; ``protected`` by an authorization value; ``untried`` where there is none, or what it needs is
            missing.
        key_error: why the device's key does not sign.
        peers: the servers.
        configuration: what $OPENSSL_CONF names; empty if it is not set.
        configuration_exists: whether that is there.
    """

    python: str
    openssl: str
    unusable: str = ""
    linkage: Failed | None = None
    modules: str = ""
    provider: str = ""
    provider_error: Failed | None = None
    key: Literal["signed", "protected", "untried"] = "untried"
    key_error: Failed | None = None
    peers: tuple[PeerReport, ...] = ()
    configuration: str = ""
    configuration_exists: bool = False


def try_openssl(job: OpensslJob) -> OpensslReport:
    """What works (some 12 TPM commands with a TPM key, and one more for each server)."""
    from tpm_mtls.openssl.library import openssl  # noqa: PLC0415 - reports are read without OpenSSL

    configuration = os.environ.get("OPENSSL_CONF", "")
    report = OpensslReport(
        python=f"{platform.python_version()} ({sys.executable})",
        openssl=ssl.OPENSSL_VERSION,
        configuration=configuration,
        configuration_exists=bool(configuration) and Path(configuration).exists(),
    )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        return msgspec.structs.replace(report, unusable=(error.reason or str(error)).lower().replace("_", " "))
    try:
        openssl()
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, linkage=failed(error))
    report = _provider(report, job.tcti)
    context, report = _key(report, job)
    peers = tuple(_peer(peer, job, context) for peer in job.peers)
    return msgspec.structs.replace(report, peers=peers)


def _provider(report: OpensslReport, tcti: str | None) -> OpensslReport:
    from tpm_mtls.openssl.provider import connect, modules_folder  # noqa: PLC0415 - as above

    try:
        report = msgspec.structs.replace(report, modules=str(modules_folder()))
        if tcti is None:
            return report
        version = connect(tcti).version
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, provider_error=failed(error))
    return msgspec.structs.replace(report, provider=".".join(map(str, version)))


def _key(report: OpensslReport, job: OpensslJob) -> tuple[IdentityContext | None, OpensslReport]:
    """A context with the device's key, if that signs."""
    from tpm_mtls.identity import load_identity  # noqa: PLC0415 - as above
    from tpm_mtls.tls import client_context  # noqa: PLC0415 - as above

    if not job.folder or job.lost:
        return None, report
    if job.protected:
        return None, msgspec.structs.replace(report, key="protected")
    try:
        identity = load_identity(Path(job.folder))
        if not _is_possible(report, identity, job.tcti):
            return None, report
        context = client_context(identity, tcti=job.tcti)
        error = context.diagnose()
        if error is not None:
            raise error
    except TpmMtlsError as error:
        return None, msgspec.structs.replace(report, key_error=failed(error))
    return context, msgspec.structs.replace(report, key="signed")


def _is_possible(report: OpensslReport, identity: Identity, tcti: str | None) -> bool:
    """Whether what the key needs is there, so that trying it tells something new."""
    from tpm_mtls.key_reference import KeyFile  # noqa: PLC0415 - as above

    if isinstance(identity.key, KeyFile) and not identity.key.is_tss2():
        return True
    return tcti is not None and report.provider_error is None


def _peer(peer: Peer, job: OpensslJob, own: IdentityContext | None) -> PeerReport:
    """One request. The CA is asked for its certificates, for which nobody needs one of his own."""
    from tpm_mtls.device_requests.https import HttpsTransport  # noqa: PLC0415 - as above
    from tpm_mtls.tls import trust_context  # noqa: PLC0415 - as above

    if peer.role == "backend" and own is None and job.folder:
        return PeerReport(peer=peer, untried=True)
    request = Request(method="GET", path=peer.path, body=None, headers={})
    try:
        context = own if own is not None and peer.role == "backend" else trust_context(Path(job.trust))
        with HttpsTransport(peer.server, context, _TIMEOUTS) as transport:
            answer = transport.send(request)
    except TpmMtlsError as error:
        return PeerReport(peer=peer, error=failed(error))
    return PeerReport(peer=peer, status=answer.status, reason=_reason(answer))


def _reason(answer: Answer) -> str:
    """What a server of ours says in ``{"error": …}``, in one short line."""
    try:
        said = msgspec.json.decode(answer.body, type=_Refusal).error
    except msgspec.DecodeError:
        return ""
    return "".join(each if each.isprintable() else " " for each in said[:_REASON_LIMIT])


def main() -> None:
    """The program. SIGTERM ends it in order: nothing of it stays loaded in a TPM without resource manager."""
    signal.signal(signal.SIGTERM, _end)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=OpensslJob)
    sys.stdout.buffer.write(msgspec.json.encode(try_openssl(job)))


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
