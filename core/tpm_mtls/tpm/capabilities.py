"""What a TPM says about itself: TPM2_GetCapability (TPM 2.0 Library part 3 rev 1.59, 30.2), GetTestResult, ReadClock.

The properties' numbers: part 2 rev 1.59, 6.13 (TPM_PT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import TPM2_CAP

from tpm_mtls.attestation.health import Condition, SelfTest
from tpm_mtls.errors import TpmRefusedError
from tpm_mtls.key_reference import PERSISTENT_FIRST
from tpm_mtls.tpm.values import TpmFacts
from tpm_mtls.tpm_attributes import PERMANENT, Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm2_pytss.ESAPI import ESAPI

    from tpm_mtls.tpm.resources import Resources

_AT_ONCE: Final = 64
_TRANSIENT_FIRST: Final = 0x80000000
_HANDLE_KINDS: Final = 24  # bits: the kind of a handle is its first byte

_FIXED: Final = 0x100  # PT_FIXED, where the properties that never change begin
_VARIABLE: Final = 0x200  # PT_VAR, the others
_GROUP: Final = 0x100

_MANUFACTURER: Final = 0x105
_FIRMWARE_VERSIONS: Final = (0x10B, 0x10C)

_COUNTERS: Final = {
    "nv_indices": 0x202,
    "sessions_loaded": 0x203,
    "sessions_available": 0x204,
    "sessions_active": 0x205,
    "sessions_active_available": 0x206,
    "transient_available": 0x207,
    "persistent": 0x208,
    "persistent_available": 0x209,
    "nv_counters": 0x20A,
    "nv_counters_available": 0x20B,
    "lockout_counter": 0x20E,
    "lockout_limit": 0x20F,
    "lockout_interval": 0x210,
    "lockout_recovery": 0x211,
}

_FAILURE: Final = 0x101  # TPM_RC_FAILURE: part 2, 6.6.3
_PASSED: Final = 0
_PENDING: Final = {0x153, 0x90A}  # TPM_RC_NEEDS_TEST, TPM_RC_TESTING


class Capabilities:
    """What an open TPM says about itself; `Tpm.capabilities` is the one to use. None of it writes anything."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    def self_test(self) -> SelfTest:
        """How its own tests ended (TPM2_GetTestResult: part 3, 10.4; answered in failure mode, too; one command)."""
        with self._resources.command("read the result of the TPM's self-test"):
            _, result = self._context.get_test_result()
        if int(result) == _PASSED:
            return "passed"
        return "pending" if int(result) in _PENDING else "failed"

    def fixed(self) -> dict[int, int]:
        """The properties that never change, by their numbers (one command, or one for each 64)."""
        return self._properties(_FIXED)

    def variable(self) -> dict[int, int]:
        """The other properties, by their numbers (one command, or one for each 64)."""
        return self._properties(_VARIABLE)

    def transient_handles(self) -> tuple[int, ...]:
        """Handles of loaded objects: the TPM's own, or, behind a resource manager, this program's (one command)."""
        with self._resources.command("list what is loaded"):
            return read_handles(self._context, _TRANSIENT_FIRST)

    def condition(self) -> Condition:
        """How it is (four commands).

        Raises:
            TpmRefusedError: it does not say all that it must; with TPM_RC_FAILURE where its self-test failed: then it
                answers nothing else (part 1, 12.3).
        """
        self_test = self.self_test()
        fixed, variable = self.fixed(), self.variable()
        try:
            counters = {name: variable[number] for name, number in _COUNTERS.items()}
            return Condition(
                vendor=_vendor(fixed[_MANUFACTURER]),
                firmware=_firmware(*(fixed[number] for number in _FIRMWARE_VERSIONS)),
                self_test=self_test,
                transient_loaded=len(self.transient_handles()),
                locked_out=bool(variable[PERMANENT] & Permanent.IN_LOCKOUT),
                **counters,
            )
        except KeyError as error:
            if self_test == "failed":
                raise TpmRefusedError(
                    "the TPM is in failure mode: a test of its own failed",
                    hint="power the machine off and on again; if it stays, replace the TPM",
                    rc=_FAILURE,
                ) from error
            raise TpmRefusedError(
                f"the TPM does not say its property {error.args[0]:#x}",
                hint="every TPM 2.0 must; power the machine off and on again",
                rc=0,
            ) from error

    def _properties(self, first: int) -> dict[int, int]:
        found: dict[int, int] = {}
        with self._resources.command("read the TPM's properties"):
            found |= {
                number: value for number, value in read_properties(self._context, first) if number < first + _GROUP
            }
        return found


def read_facts(context: ESAPI) -> TpmFacts:
    """Vendor, firmware and resetCount (two commands)."""
    _, data = context.get_capability(TPM2_CAP.TPM_PROPERTIES, _MANUFACTURER, 16)
    listed = data.data.tpmProperties
    values = {int(listed[i].property): int(listed[i].value) for i in range(int(listed.count))}
    return TpmFacts(
        vendor=_vendor(values.get(_MANUFACTURER, 0)),
        firmware=_firmware(*(values.get(part, 0) for part in _FIRMWARE_VERSIONS)),
        reset_count=int(context.read_clock().clockInfo.resetCount),
    )


def read_persistent_handles(context: ESAPI) -> tuple[int, ...]:
    """All persistent handles in use (one command for each 64)."""
    return read_handles(context, PERSISTENT_FIRST)


def read_handles(context: ESAPI, first: int) -> tuple[int, ...]:
    """All handles of the kind of ``first``, from that one on (one command for each 64)."""
    found: list[int] = []
    more = True
    while more:
        more, data = context.get_capability(TPM2_CAP.HANDLES, found[-1] + 1 if found else first, _AT_ONCE)
        listed = data.data.handles
        found += [int(listed[i]) for i in range(int(listed.count))]
        more = more and int(listed.count) > 0
    return tuple(handle for handle in found if handle >> _HANDLE_KINDS == first >> _HANDLE_KINDS)


def read_properties(context: ESAPI, first: int) -> Iterator[tuple[int, int]]:
    """The properties from ``first`` to the end of its group, and maybe some more (one command for each 64)."""
    more, last = True, first - 1
    while more and last + 1 < first + _GROUP:
        more, data = context.get_capability(TPM2_CAP.TPM_PROPERTIES, last + 1, _AT_ONCE)
        listed = data.data.tpmProperties
        if not int(listed.count):
            return
        for i in range(int(listed.count)):
            last = int(listed[i].property)
            yield last, int(listed[i].value)


def _vendor(value: int) -> str:
    return value.to_bytes(4, "big").rstrip(b"\0 ").decode("ascii", errors="replace")


def _firmware(*versions: int) -> str:
    return ".".join(f"{version >> 16}.{version & 0xFFFF}" for version in versions)
