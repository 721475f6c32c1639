"""What a device says about its TPM's health: ``POST /health``, and ``health.json`` on the device itself. JSON, strict.

Nothing of it is proved: a device that was taken over can say what it likes. What is proved is a quote
(`tpm_mtls.attestation.messages`).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from tpm_mtls.errors import EvidenceError

HEALTH_FORMAT: Final = 1

HEALTH_LIMIT: Final = 64 * 1024
"""Bytes of a report: 8 failures and 16 warnings with two texts of 1,000 characters each are 48 KiB, 2 KiB is usual."""

TEXT_LIMIT: Final = 1000
"""Characters of a reason or hint; `shortened` cuts there."""

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

FailureKind: TypeAlias = Literal[
    "TpmUnavailable", "SelfTestFailure", "EncFailure", "QuoteFailure", "SignFailure", "TpmCleared", "TpmSwapped"
]
"""Why a device is in maintenance mode; `docs/how-to/check-the-tpm.md` says what to do about each.

TpmUnavailable: no TPM answers. SelfTestFailure: its own test failed. EncFailure: what was wrapped under the storage
root key did not come back. QuoteFailure: the attestation key does not quote. SignFailure: the TLS key does not sign.
TpmCleared, TpmSwapped: it is not the TPM state, or not the TPM, that the identity was made in.
"""

CautionKind: TypeAlias = Literal[
    "NvNearlyFull",
    "LockoutCounter",
    "Lockout",
    "LeakedObjects",
    "LeakedSessions",
    "KnownBadFirmware",
    "SignUnchecked",
    "CapabilitiesUnreadable",
]
"""What works yet, and should be looked at.

NvNearlyFull: no room for two more keys, or counters (how many bytes are left for NV indices no TPM says).
LockoutCounter, Lockout: wrong authorization values were tried; too many. LeakedObjects, LeakedSessions: something is
loaded in a TPM without resource manager while the agent has nothing in it. KnownBadFirmware: `tpm_mtls.tpm_firmware`.
SignUnchecked: the TLS key has an authorization value, and the agent does not have it. CapabilitiesUnreadable: the TPM
does not say how it is.
"""

CheckName: TypeAlias = Literal["wrap", "quote", "sign"]
Outcome: TypeAlias = Literal["passed", "failed", "skipped"]
SelfTest: TypeAlias = Literal["passed", "pending", "failed"]


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One reason for maintenance mode.

    Attributes:
        kind: its class.
        reason: what happened.
        hint: what to do.
    """

    kind: FailureKind
    reason: Text
    hint: Text


class Caution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that works yet, and should be looked at.

    Attributes:
        kind: its class.
        text: what was found.
        hint: what to do.
    """

    kind: CautionKind
    text: Text
    hint: Text


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check.

    Attributes:
        name: ``wrap`` (seal, load, unseal, compare), ``quote`` or ``sign``.
        outcome: ``skipped`` where there is nothing to check, as a quote without an attestation key.
        seconds: how long the TPM took, loading and flushing included; 0 where it was skipped.
    """

    name: CheckName
    outcome: Outcome
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the TPM says about itself; TPM 2.0 Library part 2 rev 1.59, 6.13, gives the names in brackets.

    Attributes:
        vendor: up to four characters [MANUFACTURER].
        firmware: four decimal numbers [FIRMWARE_VERSION_1, _2].
        self_test: TPM2_GetTestResult; ``pending`` where tests are still to be made, or under way.
        transient_loaded: objects that are loaded, as far as this program can see (behind a resource manager: its own).
        transient_available: how many more it can load [HR_TRANSIENT_AVAIL].
        sessions_loaded: sessions in its memory [HR_LOADED].
        sessions_available: how many more it can take [HR_LOADED_AVAIL].
        sessions_active: loaded and saved ones [HR_ACTIVE].
        sessions_active_available: how many more [HR_ACTIVE_AVAIL].
        persistent: persistent objects [HR_PERSISTENT].
        persistent_available: how many more, at least [HR_PERSISTENT_AVAIL].
        nv_indices: NV indices [HR_NV_INDEX].
        nv_counters: of them, counters [NV_COUNTERS].
        nv_counters_available: how many more counters, at least [NV_COUNTERS_AVAIL].
        lockout_counter: wrong authorization values that count [LOCKOUT_COUNTER].
        lockout_limit: at how many it locks [MAX_AUTH_FAIL].
        lockout_interval: seconds after which one is forgotten [LOCKOUT_INTERVAL].
        lockout_recovery: seconds after a wrong lockout value until it may be tried again [LOCKOUT_RECOVERY].
        locked_out: whether it is locked [PERMANENT, inLockout].
    """

    vendor: Word
    firmware: Word
    self_test: SelfTest
    transient_loaded: Count
    transient_available: Count
    sessions_loaded: Count
    sessions_available: Count
    sessions_active: Count
    sessions_active_available: Count
    persistent: Count
    persistent_available: Count
    nv_indices: Count
    nv_counters: Count
    nv_counters_available: Count
    lockout_counter: Count
    lockout_limit: Count
    lockout_interval: Count
    lockout_recovery: Count
    locked_out: bool


class HealthReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One health check.

    Attributes:
        format: version of this structure.
        time: when, seconds since 1970 by the device's clock.
        is_tpm: whether the device's identity is in a TPM; without one nothing is checked.
        checks: each check, in the order in which it was made; empty without a TPM.
        failures: why the device is in maintenance mode; empty if it is not.
        warnings: what works yet.
        condition: what the TPM says about itself; none without a TPM, or if it did not answer.
    """

    format: Literal[1] = HEALTH_FORMAT
    time: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    is_tpm: bool = True
    checks: Annotated[tuple[Check, ...], msgspec.Meta(max_length=8)] = ()
    failures: Annotated[tuple[Failure, ...], msgspec.Meta(max_length=8)] = ()
    warnings: Annotated[tuple[Caution, ...], msgspec.Meta(max_length=16)] = ()
    condition: Condition | None = None

    @property
    def maintenance(self) -> bool:
        """Whether the device is, or should be, in maintenance mode."""
        return bool(self.failures)


def encode_health(report: HealthReport) -> bytes:
    """``report`` as JSON."""
    return msgspec.json.encode(report)


def decode_health(data: bytes) -> HealthReport:
    """A report that came from outside.

    1. At most `HEALTH_LIMIT` bytes. 2. JSON with exactly these members, each within its limits.

    Raises:
        EvidenceError: it is not that.
    """
    hint = "is that a health report, of an agent of this version?"
    if len(data) > HEALTH_LIMIT:  # 1
        raise EvidenceError(f"the health report has more than {HEALTH_LIMIT} bytes", hint=hint)
    try:
        return msgspec.json.decode(data, type=HealthReport)  # 2
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EvidenceError(f"the health report is malformed: {str(error).lower()}", hint=hint) from error


def shortened(text: str) -> str:
    """``text`` on one line, cut at `TEXT_LIMIT` characters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"
