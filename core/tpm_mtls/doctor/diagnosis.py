"""The whole examination, from the machine to the network: causes come before what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.configuration import load_configuration
from tpm_mtls.doctor.children import OPENSSL, PATIENCE_OPENSSL, PATIENCE_TPM, TPM, ask_child
from tpm_mtls.doctor.findings import Failed, Finding, failed, problem_of, problems
from tpm_mtls.doctor.identity_report import IdentityReport, observe_identity
from tpm_mtls.doctor.identity_rules import judge_clock, judge_identity
from tpm_mtls.doctor.machine import Machine, Places, observe_machine
from tpm_mtls.doctor.machine_rules import judge_machine, named_device
from tpm_mtls.doctor.openssl_report import OpensslJob, OpensslReport, Peer
from tpm_mtls.doctor.openssl_rules import judge_key, judge_openssl, judge_peer
from tpm_mtls.doctor.servers import ca_peer
from tpm_mtls.doctor.tpm_report import TpmJob, TpmReport
from tpm_mtls.doctor.tpm_rules import is_owner_disabled, judge_tpm
from tpm_mtls.errors import TpmMtlsError, UsageError
from tpm_mtls.identity import DEFAULT_FOLDER, TRUST
from tpm_mtls.tcti import chosen_tcti

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What is examined.

    Attributes:
        tcti: where the TPM is, as the user gave it.
        folder: the identity folder.
        trust: PEM file that says whom to trust; none for the identity folder's.
        peers: servers to be tried; without a CA among them the one that issued the certificate is tried.
        patience: seconds for the TPM to answer.
        places: where the machine shows what it has.
    """

    tcti: str | None = None
    folder: Path = DEFAULT_FOLDER
    trust: Path | None = None
    peers: tuple[Peer, ...] = ()
    patience: float = PATIENCE_TPM
    places: Places = field(default_factory=Places)


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, and what it means.

    Attributes:
        tcti: where the TPM is looked for; empty where that is not known.
        findings: what it means.
        machine: device nodes, drivers and rights.
        tpm: what the TPM says; none if it was not asked.
        openssl: what OpenSSL can do; none if it was not tried.
        identity: what is in the identity folder.
    """

    tcti: str
    findings: tuple[Finding, ...]
    machine: Machine
    tpm: TpmReport | None
    openssl: OpensslReport | None
    identity: IdentityReport

    @property
    def problems(self) -> list[Finding]:
        """Those findings that are problems."""
        return problems(self.findings)


def diagnose(settings: Settings, *, now: Callable[[], datetime]) -> Diagnosis:
    """Examines configuration, machine, clock, TPM, OpenSSL, identity and servers, in this order.

    Nothing is changed, and no error of the project escapes: each becomes a finding.
    """
    present = now()
    identity = observe_identity(settings.folder, present)
    tcti, findings = _where(settings.tcti)
    machine = observe_machine(settings.places, named_device(tcti))
    if tcti:
        findings += judge_machine(machine, tcti)
    reachable = bool(tcti) and not problems(findings)
    findings.append(judge_clock(present, identity))
    tpm = _ask_tpm(settings, tcti, identity) if reachable else None
    if tpm is not None:
        findings += judge_tpm(tpm, tcti, identity.record)
        reachable = tpm.condition is not None
    openssl = _try_openssl(
        settings,
        tcti if reachable else None,
        identity,
        protected=tpm is not None and tpm.key_is_protected,
        lost=not identity.is_whole or _has_lost_keys(tpm, findings),
    )
    report = openssl if isinstance(openssl, OpensslReport) else None
    findings += [problem_of("openssl.works", openssl)] if isinstance(openssl, Failed) else judge_openssl(openssl)
    findings += judge_identity(identity, present)
    if report is not None:
        findings += [*judge_key(report), *(judge_peer(each) for each in report.peers)]
    return Diagnosis(
        tcti=tcti,
        findings=tuple(findings),
        machine=machine,
        tpm=tpm,
        openssl=report,
        identity=identity,
    )


def _has_lost_keys(tpm: TpmReport | None, findings: list[Finding]) -> bool:
    """Whether it is said already that the device's keys are not in the TPM, or seem not to be."""
    return tpm is not None and (is_owner_disabled(tpm) or any(each.check == "tpm.same" for each in problems(findings)))


def _where(explicit: str | None) -> tuple[str, list[Finding]]:
    try:
        load_configuration()  # where the TPM is named otherwise, too: whatever uses the key reads it
        return chosen_tcti(explicit), []
    except TpmMtlsError as error:
        return "", [problem_of("configuration", failed(error))]


def _ask_tpm(settings: Settings, tcti: str, identity: IdentityReport) -> TpmReport:
    job = TpmJob(tcti=tcti, folder=str(settings.folder), record=identity.record)
    try:
        return ask_child(TPM, job, TpmReport, patience=settings.patience)
    except TpmMtlsError as error:
        return TpmReport(error=failed(error))


def _try_openssl(
    settings: Settings, tcti: str | None, identity: IdentityReport, *, protected: bool, lost: bool
) -> OpensslReport | Failed:
    peers = settings.peers
    if identity.record is not None and not any(peer.role == "CA" for peer in peers):
        peers = (*_issuer(identity.record.ca_url), *peers)
    job = OpensslJob(
        tcti=tcti,
        folder=identity.folder if identity.record is not None else "",
        trust=str(settings.trust or settings.folder / TRUST),
        peers=peers,
        protected=protected,
        lost=lost,
    )
    try:
        return ask_child(OPENSSL, job, OpensslReport, patience=PATIENCE_OPENSSL)
    except TpmMtlsError as error:
        return failed(error)


def _issuer(url: str) -> tuple[Peer, ...]:
    try:
        return (ca_peer(url, named=False),)
    except UsageError:  # the record is not this program's
        return ()
