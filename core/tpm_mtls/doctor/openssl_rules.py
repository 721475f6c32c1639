"""What was found out about OpenSSL, the device's key and the servers, judged. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tpm_mtls.doctor.findings import ok, problem, problem_of, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.doctor.findings import Failed, Finding
    from tpm_mtls.doctor.openssl_report import OpensslReport, PeerReport

_SAID_ELSEWHERE: Final = {"CertificateExpiredError", "CertificateNotYetValidError", "IdentityError"}
"""What the rules about the identity folder say in more words."""

_THREADS: Final = (1, 3)  # the provider's first version with a lock around its TPM connection
_REFUSED: Final = {401, 403}


def judge_openssl(report: OpensslReport) -> list[Finding]:
    """What ``report`` means, but for the servers.

    1. Python's OpenSSL is a shared library of version 3, which can be reached.
    2. The tpm2 provider is there, loads, and is of a version that serves threads.
    3. $OPENSSL_CONF names a file.
    4. The device's key signs.
    """
    if report.linkage is not None:
        return [problem_of("openssl.linkage", report.linkage)]  # 1
    findings = [ok("openssl.linkage", f"Python {report.python} uses {report.openssl}")]
    findings += _provider(report)  # 2
    if report.configuration and not report.configuration_exists:  # 3
        findings.append(
            warning(
                "openssl.configuration",
                f"$OPENSSL_CONF names {report.configuration}, which is not there: OpenSSL goes on without a word",
                'unset OPENSSL_CONF; or: eval "$(tpm-mtls openssl-env)"',
            )
        )
    findings += _key(report)  # 4
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
            "see what is said above of the device's key",
        )
    if report.error is not None:
        finding = problem_of(check, report.error)
        if peer.named or report.error.kind != "PeerUnreachableError":
            return finding
        return warning(check, finding.text, f"{finding.remedy}; it is needed again when the certificate is renewed")
    if report.status in _REFUSED and peer.role == "backend":
        return warning(
            check,
            f"{where} answered, and refuses this device (HTTP {report.status})",
            "ask who runs it whether the device is registered there, and not blocked",
        )
    if report.status >= 500 or (peer.role == "CA" and report.status >= 400):  # noqa: PLR2004 - RFC 9110, 15.5 and 15.6
        return problem(check, f"{where} answered with HTTP {report.status}", "is that its URL? then see its log")
    return ok(check, f"{where} answered, and its certificate is trusted")


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


def _key(report: OpensslReport) -> Iterator[Finding]:
    check = "identity.key"
    error = report.key_error
    if error is None:
        if report.key == "signed":
            yield ok(check, "the device's key signs, and its certificate belongs to it")
        elif report.key == "protected":
            yield ok(check, "it has an authorization value, so it was not tried: tpm-mtls tpm test sign --help")
    elif error.kind == "CertificateMismatchError":
        yield problem("identity.certificate", error.message, error.hint)
    elif error.kind not in _SAID_ELSEWHERE:
        yield problem_of(check, error)
