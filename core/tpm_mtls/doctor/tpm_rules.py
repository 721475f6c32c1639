"""What a TPM's own words mean for who wants to use it. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from tpm_mtls.doctor.findings import ok, problem, problem_of, warning
from tpm_mtls.life_cycle import Observed, judge
from tpm_mtls.tcti import is_raw
from tpm_mtls.tpm_attributes import WHY_IT_COUNTS, Permanent, StartupClear
from tpm_mtls.tpm_firmware import firmware_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.attestation.health import Condition
    from tpm_mtls.doctor.findings import Finding
    from tpm_mtls.doctor.tpm_report import TpmReport
    from tpm_mtls.identity import IdentityRecord

_RSA_KEYS_LOST: Final = {"CVE-2017-15361"}
_ECC_KEYS_LOST: Final = {"CVE-2019-16863", "CVE-2019-11090"}
_FEW: Final = 2
_HIERARCHIES: Final = "tpm.hierarchies"


def judge_tpm(report: TpmReport, tcti: str, record: IdentityRecord | None) -> list[Finding]:
    """What ``report`` means; ``record`` is the device's identity, if it has one.

    1. The TPM answers.
    2. Its hierarchies are enabled: a disabled one's keys seem not to be there.
    3. It is the one that the identity was made in, and was not cleared since.
    4. Its firmware is of no version that is known to be bad.
    5. It has the PCR bank sha256.
    6. It is not locked by wrong authorization values, or by what counts as such (`WHY_IT_COUNTS`).
    7. Nothing is left in its memory, and there is room for more keys.
    8. Nobody else can clear it.
    9. What is in the storage root key's place is one, and nothing else kept it from answering.
    """
    findings = list(_answers(report, tcti))  # 1
    condition = report.condition
    if condition is None:
        return findings
    findings += _hierarchies(report)  # 2
    hides_keys = is_owner_disabled(report)
    findings += () if hides_keys else _life(report, record)  # 3
    findings += _firmware(condition, record)  # 4
    findings += _banks(report.banks)  # 5
    tools = f"-T {shlex.quote(tcti)}"
    findings += _lockout(condition, tools)  # 6
    findings += _memory(condition, tools) if is_raw(tcti) else ()  # 7
    findings += _room(condition)
    findings.append(_authorizations(report))  # 8
    findings += () if hides_keys else _storage_root(report, record, tools)  # 9
    return findings + ([problem_of("tpm.keys", report.error)] if report.error is not None else [])


def is_owner_disabled(report: TpmReport) -> bool:
    """Whether the TPM answers, and hides the storage root key and the device's keys as if they were gone."""
    return report.condition is not None and not report.startup & StartupClear.OWNER_ENABLED


def _answers(report: TpmReport, tcti: str) -> Iterator[Finding]:
    error, condition = report.error, report.condition
    if condition is None:
        if error is not None:
            yield problem_of("tpm.version" if error.kind == "TpmVersionError" else "tpm.answers", error)
        return
    what = f"{condition.vendor} {condition.firmware}, TPM {report.specification}, at {tcti}"
    if condition.self_test == "failed":
        yield problem(
            "tpm.self-test", f"a test of its own failed: {what}", "power the machine off and on; then replace the TPM"
        )
    yield ok("tpm.version", what)


def _life(report: TpmReport, record: IdentityRecord | None) -> Iterator[Finding]:
    if record is None or report.seen is None:
        return
    seen = report.seen
    life = judge(
        record,
        Observed(seen.srk_name, ek_sha256=seen.ek_sha256, reset_count=seen.reset_count, has_key=seen.has_key),
    )
    if not life.usable:
        yield problem("tpm.same", life.text, life.hint)
    elif life.hint:
        yield warning("tpm.same", life.text, life.hint)
    else:
        yield ok("tpm.same", "it is the TPM that the identity was made in")


def _firmware(condition: Condition, record: IdentityRecord | None) -> Iterator[Finding]:
    faults = firmware_faults(condition.vendor, condition.firmware)
    algorithm = record.algorithm if record is not None and record.is_tpm else ""
    for fault in faults:
        lost = (fault.name in _RSA_KEYS_LOST and algorithm.startswith("rsa")) or (
            fault.name in _ECC_KEYS_LOST and algorithm.startswith("ecc")
        )
        text = f"firmware {condition.vendor} {condition.firmware} has {fault.name}: {fault.effect}"
        remedy = f"see {fault.source}"
        if lost:
            yield problem("tpm.firmware", text, f"{remedy}; the device's {algorithm} key is one of these: replace it")
        else:
            yield warning("tpm.firmware", text, remedy)
    if not faults:
        yield ok("tpm.firmware", "no fault is known that its version tells")


def _banks(banks: tuple[str, ...]) -> Iterator[Finding]:
    if "sha256" in banks:
        yield ok("tpm.pcr-banks", f"PCR banks: {', '.join(banks)}")
        return
    there = f"only {', '.join(banks)}" if banks else "none at all"
    yield problem(
        "tpm.pcr-banks",
        f"the PCR bank sha256 is switched off; there is {there}: no policy on PCRs and no quote will do",
        "switch it on in the firmware's set-up; or: tpm2_pcrallocate -P PLATFORM-AUTH sha256:all, then restart",
    )


def _lockout(condition: Condition, tools: str) -> Iterator[Finding]:
    wrong = f"{condition.lockout_counter} of {condition.lockout_limit} wrong authorization values"
    interval = condition.lockout_interval
    forgets = f"one is forgotten in {interval} s" if interval else "none is ever forgotten"
    remedy = f"{WHY_IT_COUNTS}; {forgets}; or: tpm2_dictionarylockout {tools} --clear-lockout (-p with its value)"
    if condition.locked_out:
        yield problem("tpm.lockout", f"it is locked: {wrong}", remedy)
    elif condition.lockout_counter:
        yield warning("tpm.lockout", wrong, remedy)
    else:
        yield ok("tpm.lockout", "no wrong authorization value counts")


def _memory(condition: Condition, tools: str) -> Iterator[Finding]:
    """What is left of programs; behind a resource manager nobody sees it, and it does no harm."""
    sessions_free = min(condition.sessions_available, condition.sessions_active_available)
    kinds = (
        ("objects", condition.transient_loaded, condition.transient_available, "-t"),
        ("sessions", condition.sessions_active, sessions_free, "-l -s"),
    )
    for kind, there, free, options in kinds:
        check = f"tpm.leaked-{kind}"
        flush = "; ".join(f"tpm2_flushcontext {tools} {option}" for option in options.split())
        remedy = f"end the programs that use it, then: {flush}; a resource manager keeps it from happening again"
        if there and not free:
            text = f"{there} {kind} are loaded and there is room for no more: programs left them"
            yield problem(check, text, remedy)
        elif there:
            text = f"{there} {kind} are loaded, {free} more possible: a program is at work, or left them"
            yield warning(check, text, remedy)
        else:
            yield ok(check, f"no {kind} are left in it")


def _room(condition: Condition) -> Iterator[Finding]:
    free = condition.persistent_available
    text = (
        f"room for {free} more persistent keys; {condition.persistent} keys and {condition.nv_indices} NV indices used"
    )
    remedy = "see whose they are: tpm-mtls keygen list; remove what nobody needs: tpm2_evictcontrol, tpm2_nvundefine"
    if not free:
        yield problem("tpm.room", text, remedy)
    elif free < _FEW:
        yield warning("tpm.room", text, remedy)
    else:
        yield ok("tpm.room", text)


def _hierarchies(report: TpmReport) -> Iterator[Finding]:
    needed = ((StartupClear.OWNER_ENABLED, "owner"), (StartupClear.ENDORSEMENT_ENABLED, "endorsement"))
    for enabled, hierarchy in needed:
        if not report.startup & enabled:
            yield problem(
                _HIERARCHIES,
                f"the {hierarchy} hierarchy is disabled until the next restart: its keys are there, but cannot be used",
                "restart the machine; if it is disabled again: switch it on in the firmware's set-up",
            )


def _authorizations(report: TpmReport) -> Finding:
    given = (
        (Permanent.OWNER_AUTH_SET, "owner"),
        (Permanent.ENDORSEMENT_AUTH_SET, "endorsement"),
        (Permanent.LOCKOUT_AUTH_SET, "lockout"),
    )
    values = [name for bit, name in given if report.permanent & bit]
    text = f"authorization values are set for: {', '.join(values) or 'none'}"
    if report.permanent & Permanent.LOCKOUT_AUTH_SET:
        return ok(_HIERARCHIES, text)
    return warning(
        _HIERARCHIES, f"{text}; so whoever may use the TPM may clear it", "tpm-mtls provision --plan hardening.toml"
    )


def _storage_root(report: TpmReport, record: IdentityRecord | None, tools: str) -> Iterator[Finding]:
    check = "tpm.storage-root-key"
    if report.srk_is_key:
        yield ok(check, f"it is there: {report.srk}")
    elif report.srk:
        remove = f"tpm2_evictcontrol {tools} -C o -c 0x81000001"
        yield problem(check, report.srk, f"find out whose it is; if nobody needs it: {remove}")
    elif report.seen is not None and report.seen.has_key and record is not None and record.srk_name is not None:
        yield problem(  # where the key is gone as well, the TPM was cleared, which is said above
            check,
            "somebody removed it; the device's own key is left, but nothing opens what was sealed under it",
            "make it again, which gives the same one: tpm-mtls provision --apply FILE (an empty one will do)",
        )
    elif report.error is None:
        yield ok(check, "there is none yet: the first key makes it")
