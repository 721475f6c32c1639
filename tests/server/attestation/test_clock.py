"""Check 7: no history of a genuine TPM is refused, and nothing is accepted that goes back in it."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls_server.attestation.clock import (
    UPDATE_INTERVAL,
    ClockState,
    check_clock,
    firmware_changed,
)

BEFORE = ClockState(key="00", milliseconds=10_000_000, reset_count=5, restart_count=6, safe=True, firmware=7)
UNSAFE = dataclasses.replace(BEFORE, safe=False)
LATER = {"milliseconds": 10_000_001}
LAST = 2**32 - 1


def but(state: ClockState, **changes: Any) -> ClockState:  # noqa: ANN401 - fields
    return dataclasses.replace(state, **changes)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, but(BEFORE, safe=False)),
        (BEFORE, but(BEFORE, **LATER)),
        (BEFORE, but(BEFORE, **LATER, restart_count=7)),
        (BEFORE, but(BEFORE, **LATER, reset_count=6, restart_count=0)),
        (BEFORE, but(BEFORE, reset_count=6, restart_count=3)),
        (BEFORE, but(BEFORE, reset_count=6, safe=False, milliseconds=10_000_001 - UPDATE_INTERVAL)),
        (BEFORE, but(BEFORE, reset_count=6, safe=True, milliseconds=9_999_999)),  # libtpms, after a power cut
        (UNSAFE, but(UNSAFE, **LATER)),
        (UNSAFE, but(UNSAFE, **LATER, safe=True)),
        (but(BEFORE, reset_count=LAST), but(BEFORE, **LATER, reset_count=0)),
        (but(BEFORE, restart_count=LAST), but(BEFORE, **LATER, restart_count=0)),
        (BEFORE, but(BEFORE, key="01", milliseconds=1, reset_count=0, restart_count=0, safe=False)),
    ],
)
def test_what_a_genuine_tpm_does_passes(before: ClockState | None, now: ClockState) -> None:
    check_clock(before, now)


@pytest.mark.parametrize(
    ("before", "changes", "reason"),
    [
        (BEFORE, {**LATER, "reset_count": 4}, "the TPM's reset counter fell by 1\n"),
        (but(BEFORE, reset_count=0), {**LATER, "reset_count": LAST}, "the TPM's reset counter fell by 1\n"),
        (BEFORE, {**LATER, "restart_count": 5}, "the TPM's restart counter fell by 1 without a reset"),
        (BEFORE, {}, "the TPM's clock stood still without a reset"),
        (BEFORE, {"milliseconds": 9_999_999}, r"the TPM's clock fell by 0\.001 seconds without a reset"),
        (BEFORE, {"milliseconds": 1_000_000}, r"the TPM's clock fell by 150\.0 minutes without a reset"),
        (BEFORE, {**LATER, "safe": False}, "the TPM's clock became unsafe without a reset"),
        *(
            (
                BEFORE,
                {"reset_count": 6, "safe": safe, "milliseconds": 10_000_000 - UPDATE_INTERVAL},
                r"clock fell by 69\.9 minutes at a restart",
            )
            for safe in (True, False)
        ),
    ],
)
def test_what_goes_back_is_refused(before: ClockState, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(EvidenceRefusedError, match=reason) as caught:
        check_clock(before, but(BEFORE, **changes))
    assert caught.value.check == 7
    assert "restored from a backup" in caught.value.hint


def test_other_firmware_is_told_of_one_key_only() -> None:
    assert firmware_changed(BEFORE, but(BEFORE, firmware=8))
    assert not firmware_changed(BEFORE, but(BEFORE, firmware=7))
    assert not firmware_changed(BEFORE, but(BEFORE, firmware=8, key="01"))
    assert not firmware_changed(None, BEFORE)


@dataclass
class ModelTpm:
    """The clock of TPM 2.0 Library part 1 rev 1.59, 36: ``kept`` is in NV memory, ``offsets`` only the TPM knows."""

    offsets: tuple[int, int, int]
    clock: int = 0
    kept: int = 0
    resets: int = 0
    restarts: int = 0
    safe: bool = True

    def wait(self, milliseconds: int) -> None:
        self.clock += milliseconds
        if self.clock // UPDATE_INTERVAL > self.kept // UPDATE_INTERVAL:
            self.kept, self.safe = self.clock // UPDATE_INTERVAL * UPDATE_INTERVAL, True

    def reboot(self) -> None:
        self.kept = self.clock
        self.resets, self.restarts = self.resets + 1, 0

    def power_cut(self) -> None:
        self.clock, self.safe = self.kept, False
        self.resets, self.restarts = self.resets + 1, 0

    def resume(self) -> None:
        self.kept = self.clock
        self.restarts += 1

    def quote(self) -> ClockState:
        self.wait(1)
        resets, restarts, firmware = self.offsets
        return ClockState(
            "00", self.clock, (self.resets + resets) % 2**32, (self.restarts + restarts) % 2**32, self.safe, firmware
        )


ACTS = st.one_of(
    st.sampled_from(["reboot", "power_cut", "resume", "quote"]),
    st.integers(min_value=0, max_value=2 * UPDATE_INTERVAL),
)
OFFSETS = st.tuples(*[st.one_of(st.integers(0, LAST), st.integers(LAST - 3, LAST)) for _ in range(3)])


def history(offsets: tuple[int, int, int], acts: list[str | int]) -> list[ClockState]:
    """The clocks of all quotes while ``acts`` happen."""
    tpm, quotes = ModelTpm(offsets), []
    for act in acts:
        if isinstance(act, int):
            tpm.wait(act)
        elif act == "quote":
            quotes.append(tpm.quote())
        else:
            getattr(tpm, act)()
    return quotes


@given(OFFSETS, st.lists(ACTS, max_size=40))
def test_no_history_of_a_tpm_is_refused(offsets: tuple[int, int, int], acts: list[str | int]) -> None:
    quotes = history(offsets, acts)
    for before, now in itertools.pairwise(quotes):
        check_clock(before, now)


@given(OFFSETS, st.lists(ACTS, max_size=40))
def test_no_quote_passes_after_itself_or_a_later_one(offsets: tuple[int, int, int], acts: list[str | int]) -> None:
    quotes = history(offsets, acts)
    for number, before in enumerate(quotes):
        for earlier in quotes[: number + 1]:
            with pytest.raises(EvidenceRefusedError, match=r"fell|stood still"):
                check_clock(before, earlier)
