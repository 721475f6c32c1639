"""The store against a model: every history of sets, deletions, refusals and power cuts leaves old or new values."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from support.policies import pcr_policy
from support.secret_model import PowerCutError, World, full_disk, refusal
from tpm_mtls.errors import (
    NoSuchSecretError,
    StorageError,
    StorageFullError,
    TpmRefusedError,
    TpmUnavailableError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls_agent.storage.slots import SLOTS, WRITES_LIMIT, Shape, home_slot, index_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls.policy.document import PolicyPcr

NAMES = (b"a", "ü".encode(), b"x" * 255)
SIZES = (0, 36, 37, 740, 741, 5000)  # on both sides of each class of indices
POLICIES = ((), (pcr_policy(),), (pcr_policy({7: "11" * 32}),))
STEPS = 8  # more than any operation has


class Histories(RuleBasedStateMachine):
    """What clients were told, against what the store has.

    ``known`` has for each name the values that it may have; none among them stands for no secret.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.satisfied |= {policy_digest(policy).hex() for policy in POLICIES if policy}
        self.policy = 0
        self.known: dict[bytes, set[bytes | None]] = {name: {None} for name in NAMES}
        self.index: dict[bytes, int] = {}
        self.counter = 0
        self.cuts = 0
        self.refused = False
        self.store = self.world.store()

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from(SIZES), at=st.integers(0, STEPS), done=st.booleans())
    def set_until_a_power_cut(self, name: bytes, size: int, at: int, *, done: bool) -> None:
        value = self._value(size)
        writes = sum(self.world.writes.values())
        with self._cut(at, done=done) as survived:
            self._note(name, self.store.set(name, value))
        self.known[name] = {value} if survived() else self.known[name] | {value}
        assert sum(self.world.writes.values()) <= writes + 1, "more than one NV write for a set"
        if not survived():
            self._restart()
        elif (entry := self.store._state.table.find(self.world.keys.name(name))) is not None:
            assert len(entry.places) == (entry.form == "nv")
            assert entry.policy == (policy_digest(POLICIES[self.policy]).hex() if self.policy else "")

    @rule(name=st.sampled_from(NAMES), at=st.integers(0, STEPS), done=st.booleans())
    def delete_until_a_power_cut(self, name: bytes, at: int, *, done: bool) -> None:
        with self._cut(at, done=done) as survived:
            try:
                self.store.delete(name)
            except NoSuchSecretError:
                assert None in self.known[name]
        self.known[name] = {None} if survived() else self.known[name] | {None}
        if not survived():
            self._restart()

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from(SIZES), at=st.integers(1, STEPS), full=st.booleans())
    def set_with_a_step_refused(self, name: bytes, size: int, at: int, *, full: bool) -> None:
        """What the TPM refused has not happened; what was acknowledged nevertheless has. A disk may fail too late."""
        value = self._value(size)
        before = self._values()
        with self._refuse(at, full=full) as failed:
            self._note(name, self.store.set(name, value))
        self.known[name] = {value} if not failed() else before[name] | ({value} if failed() == "disk" else set())

    @rule(name=st.sampled_from(NAMES), at=st.integers(1, STEPS))
    def delete_with_a_step_refused(self, name: bytes, at: int) -> None:
        before = self._values()
        with self._refuse(at) as failed:
            try:
                self.store.delete(name)
            except NoSuchSecretError:
                assert None in before[name]
        self.known[name] = {None} if not failed() else before[name] | ({None} if failed() == "disk" else set())

    @rule(
        name=st.sampled_from(NAMES),
        size=st.none() | st.sampled_from(SIZES),
        at=st.integers(1, STEPS),
        done=st.booleans(),
        gone=st.booleans(),
    )
    def the_tpms_answer_gets_lost(self, name: bytes, size: int | None, at: int, *, done: bool, gone: bool) -> None:
        """Nobody knows whether it did it. If the TPM is gone, the agent ends in order and opens it again."""
        value = None if size is None else self._value(size)
        error = TpmUnavailableError("gone", hint="none", tcti="") if gone else refusal(0xA000A)
        self.refused = True
        with (
            self._failing(at, error, full_disk(), done=done),
            suppress(TpmUnavailableError, TpmRefusedError, StorageFullError, NoSuchSecretError),
        ):
            self._note(name, self.store.set(name, value)) if value is not None else self.store.delete(name)
        self.known[name] = self.known[name] | {value}
        if gone:
            self.store.close()
            self._restart()

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from(SIZES))
    def set_with_a_full_disk(self, name: bytes, size: int) -> None:
        before = self._values()
        self.world.disk_full = True
        with pytest.raises(StorageFullError):
            self.store.set(name, self._value(size))
        self.world.disk_full = False
        self.known = before

    @rule(at=st.integers(1, STEPS), done=st.booleans(), policy=st.integers(0, len(POLICIES) - 1))
    def killed_and_killed_again_while_it_starts(self, at: int, policy: int, *, done: bool) -> None:
        self.policy = policy
        with self._cut(at, done=done):
            self.store = self.world.store(POLICIES[policy])
        self._restart()

    @rule(policy=st.sampled_from(POLICIES[1:]))
    def something_else_is_booted(self, policy: tuple[PolicyPcr]) -> None:
        """Or the same as before again."""
        self.world.satisfied ^= {policy_digest(policy).hex()}

    @rule(policy=st.integers(0, len(POLICIES) - 1))
    def ended_in_order(self, policy: int) -> None:
        self.policy = policy
        self.store.close()
        self._restart()

    @rule(room=st.sampled_from([0, 64, 1024, 4096]))
    def nv_memory_fills_or_is_freed(self, room: int) -> None:
        self.world.room = room

    @rule(name=st.sampled_from(NAMES), step=st.integers(0, 2))
    def somebody_else_makes_an_index(self, name: bytes, step: int) -> None:
        """Where one of the names would be; even where its NV index could come back to from a file."""
        slot = (home_slot(self.world.keys.name(name)) + step) % SLOTS
        if slot not in self.world.indices:
            self.world.indices[slot] = (Shape(slot, 33), b"foreign")

    @rule(name=st.sampled_from(NAMES))
    def an_index_is_worn(self, name: bytes) -> None:
        """The table is told so, as if it had been written that often."""
        entry = self.world.table().find(self.world.keys.name(name))
        if entry is not None:
            self.world.writes[entry.slot] = WRITES_LIMIT
            table = self.store._state.table
            self.store._state.save(msgspec.structs.replace(table, writes=table.writes | {entry.slot: WRITES_LIMIT}))

    @invariant()
    def every_name_has_a_value_that_it_may_have(self) -> None:
        self.known = self._values()

    @invariant()
    def an_index_stays_while_its_name_lives(self) -> None:
        entries = {entry.name: index_of(entry.slot) for entry in self.store._state.table.entries}
        for name in NAMES:
            index = entries.get(self.world.keys.name(name).hex())
            if index is None:
                self.index.pop(name, None)
            else:
                assert self.index.setdefault(name, index) == index

    @invariant()
    def nothing_is_left_over(self) -> None:
        """No index and no file that nobody needs, unless the TPM refused to remove it: then the next start does."""
        if self.refused:
            return
        table = self.store._state.table
        ours = {slot for slot, (shape, _) in self.world.indices.items() if shape.size in {64, 128, 256, 512, 768}}
        assert ours == {entry.slot for entry in table.entries if entry.form == "nv"}
        for entry in table.entries:
            if entry.policy in self.world.satisfied:
                assert len(entry.places) == (1 if entry.form == "nv" else 0)
        assert set(self.world.files) - {"table.json"} == {file for entry in table.entries for file in entry.files}

    @invariant()
    def writes_are_counted(self) -> None:
        """Never too few; one too many for each that did not come about."""
        for slot, count in self.world.writes.items():
            assert self.store._state.table.writes.get(slot, 0) >= count

    def _value(self, size: int) -> bytes:
        self.counter += 1
        return (b"%d," % self.counter * (size // 2 + 1))[:size]

    def _note(self, name: bytes, index: int) -> None:
        assert self.index.setdefault(name, index) == index

    def _values(self) -> dict[bytes, set[bytes | None]]:
        """What every name has; where its policy does not hold, what it may have."""
        found: dict[bytes, set[bytes | None]] = {}
        for name in NAMES:
            try:
                found[name] = {self.store.get(name)}
            except NoSuchSecretError:
                found[name] = {None}
            except TpmRefusedError as error:
                found[name] = self._refused(name, error)
            assert found[name] <= self.known[name]
        return found

    def _refused(self, name: bytes, error: TpmRefusedError) -> set[bytes | None]:
        entry = self.store._state.table.find(self.world.keys.name(name))
        assert error.rc == 0x99D
        assert entry is not None
        assert entry.policy not in self.world.satisfied
        return self.known[name]

    def _restart(self) -> None:
        self.refused = False
        self.store = self.world.store(POLICIES[self.policy])

    @contextmanager
    def _failing(self, at: int, tpm: BaseException, disk: BaseException, *, done: bool = False) -> Iterator[None]:
        """The step number ``at`` of the block (0: none) fails so, maybe although it is ``done``."""
        self.world.fails_at, self.world.done = self.world.step + at if at else None, done
        self.world.tpm_error, self.world.disk_error = tpm, disk
        try:
            yield
        finally:
            self.world.fails_at = None

    @contextmanager
    def _cut(self, at: int, *, done: bool) -> Iterator[Callable[[], bool]]:
        """The power is cut at a step; says whether it was not."""
        cut = False
        with self._failing(at, PowerCutError(), PowerCutError(), done=done):
            try:
                yield lambda: not cut
            except PowerCutError:
                cut = True

    @contextmanager
    def _refuse(self, at: int, *, full: bool = False) -> Iterator[Callable[[], str]]:
        """The TPM, or the disk, refuses a step; says which of them did."""
        failed = ""
        self.refused = True
        disk = full_disk() if full else StorageError("cannot do that", hint="none", path="")
        with self._failing(at, refusal(), disk):
            try:
                yield lambda: failed
            except TpmRefusedError:
                failed = "tpm"
            except StorageError:
                failed = "disk"


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
