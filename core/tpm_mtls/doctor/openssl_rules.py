"""What was found out about OpenSSL, the device's key and the servers, judged. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tpm_mtls.doctor.findings import ok, problem, problem_of, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.doctor.findings import Failed, Finding
    from tpm_mtls.doctor.openssl_report import OpensslReport, Peer, PeerReport

_SAID_ELSEWHERE: Final = {"CertificateExpiredError", "CertificateNotYetValidError", "IdentityError"}
"""What the rules about the identity folder say in more words."""

_REMOVED: Final = (
    "it is the right TPM, so somebody removed the key, and nobody can bring it back (what is there: tpm-mtls keygen "
    "list); enroll anew into an empty folder: tpm-mtls keygen first-boot --new-identity"
)
_CONFIGURE: Final = 'unset OPENSSL_CONF; or: eval "$(tpm-mtls openssl-env)"'
_THREADS: Final = (1, 3)  # the provider's first version with a lock around its TPM connection
_REFUSED: Final = {401, 403}
_NOBODY_TRUSTED: Final = {"StorageError", "PemError"}
_CERTIFICATE_WANTED: Final = "alert certificate required"  # RFC 8446, 6.2: certificate_required


def judge_openssl(report: OpensslReport) -> list[Finding]:
    """What ``report`` means, but for the device's key and the servers.

    1. OpenSSL makes TLS connections: its configuration has not taken the default provider away.
    2. Python's OpenSSL is a shared library of version 3, which can be reached.
    3. The tpm2 provider is there, loads, and is of a version that serves threads.
    4. $OPENSSL_CONF names a file.
    """
    if report.unusable:  # 1
        where = f"$OPENSSL_CONF, {report.configuration}," if report.configuration else "the system's openssl.cnf"
        text = f"OpenSSL makes no TLS connection ({report.unusable}): {where} activates no default provider"
        return [problem("openssl.configuration", text, _CONFIGURE)]
    if report.linkage is not None:
        return [problem_of("openssl.linkage", report.linkage)]  # 2
    findings = [ok("openssl.linkage", f"Python {report.python} uses {report.openssl}")]
    findings += _provider(report)  # 3
    if report.configuration and not report.configuration_exists:  # 4
        findings.append(
            warning(
                "openssl.configuration",
                f"$OPENSSL_CONF names {report.configuration}, which is not there: OpenSSL goes on without a word",
                _CONFIGURE,
            )
        )
    return findings


def judge_peer(report: PeerReport) -> Finding:
    """What it means how a server answered, or did not.

    That the CA does not answer matters at the next renewal only, unless the user asked for it.
    """
    peer = report.peer
    check = f"network.{peer.role.lower()}"
    where = f"the {peer.role} at {peer.server.url}"
    if report.untried:
        return warning(
            check,
            f"{where} was not tried: it wants the device's certificate, and no key signs for that here",
            "see what is said above of the device's identity",
        )
    if report.error is not None:
        return _no_answer(check, where, peer, report.error)
    said = f"HTTP {report.status}" + (f": {report.reason}" if report.reason else "")
    if report.status in _REFUSED and peer.role == "backend":
        return problem(
            check,
            f"{where} answered, and refuses this device ({said})",
            "ask who runs it whether the device is registered there, and not blocked; may it GET that path?",
        )
    if report.status >= 500 or (peer.role == "CA" and report.status != 200):  # noqa: PLR2004 - RFC 9110, 15.6; RFC 7030, 4.1.3
        return problem(check, f"{where} answered with {said}", "is that its URL? then see its log")
    return ok(check, f"{where} answered, and its certificate is trusted")


def _no_answer(check: str, where: str, peer: Peer, error: Failed) -> Finding:
    if error.kind in _NOBODY_TRUSTED:
        text = f"{where} was not tried, since there is nobody to trust: {error.message}"
        remedy = "say whom, with the CA's root certificate: --trust FILE"
        return problem(check, text, remedy) if peer.named else warning(check, text, remedy)
    if error.kind == "HandshakeError" and error.message.endswith(_CERTIFICATE_WANTED):
        if peer.role == "CA":
            text = f"{where} wants a client certificate before it says anything: no EST server does"
            return problem(check, text, "is that the backend's URL?")
        text = f"{where} is there, and its certificate is trusted; it wants a device's, and there is none"
        return warning(check, text, "enroll the device, then try again: tpm-mtls keygen first-boot --help")
    finding = problem_of(check, error)
    if peer.named or error.kind != "PeerUnreachableError":
        return finding
    return warning(check, finding.text, f"{finding.remedy}; it is needed again when the certificate is renewed")


def _provider(report: OpensslReport) -> Iterator[Finding]:
    check = "openssl.provider"
    error = report.provider_error
    if error is not None:
        yield from _provider_problem(check, error)
    elif not report.provider:
        yield ok(check, f"there is one in {report.modules}; not tried without a TPM")
    elif tuple(map(int, re.findall(r"\d+", report.provider)))[:2] < _THREADS:
        yield warning(
            check,
            f"the tpm2 provider is {report.provider}: one thread at a time can use a TPM key",
            "install tpm2-openssl 1.3 or newer: ./run setup",
        )
    else:
        yield ok(check, f"tpm2 {report.provider} in {report.modules}")


def _provider_problem(check: str, error: Failed) -> Iterator[Finding]:
    if error.kind.startswith(("Provider", "Openssl")):
        yield problem_of(check, error)
    else:
        yield problem(check, f"the tpm2 provider does not reach the TPM: {error.message}", error.hint)


def judge_key(report: OpensslReport) -> Iterator[Finding]:
    """Whether the device's key signs; nothing where it was not tried."""
    check = "identity.key"
    error = report.key_error
    if error is None:
        if report.key == "signed":
            yield ok(check, "the device's key signs, and its certificate belongs to it")
        elif report.key == "protected":
            yield ok(check, "it has an authorization value, so it was not tried: tpm-mtls tpm test sign --help")
    elif error.kind == "CertificateMismatchError":
        yield problem("identity.certificate", error.message, error.hint)
    elif error.kind == "HandleNotFoundError":
        yield problem(check, error.message, _REMOVED)
    elif error.kind not in _SAID_ELSEWHERE:
        yield problem_of(check, error)
