"""The store killed for real, at every command to the TPM and every change of a file: the old value or the new one.

And no NV index and no file that nobody needs, after the next start, with as few commands as `reconcile` says.
"""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from support.policies import extend
from support.power_cut import TpmTap
from support.secret_store import Operation, contents, fill_nv, nv_indices, secret_files
from tpm_mtls.errors import NoSuchSecretError, PolicyRefusedError
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls_agent.storage.opening import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_agent.storage.sealed_store import SealedStore

NAME, OTHER = b"stripe-api-key-prod", b"other"
SMALL, SMALLER = b"sk_live_abc123xyz", b"new"
PCR_7 = "sha256:7"
LARGE, LARGER = b"-----BEGIN PRIVATE KEY-----" * 100, b"-----BEGIN CERTIFICATE-----" * 120
KILLED = -signal.SIGKILL
UNSEAL = ["Load", "StartAuthSession", "Unseal", "FlushContext"]
START = [*UNSEAL, "GetCapability"]


@dataclass(frozen=True)
class Case:
    """What is there, what is done, and what that takes.

    Attributes:
        before: the value; none for no secret.
        after: the value that is set; none to delete it.
        commands: to the TPM, after those of the start.
        changes: of files: renamed and removed ones.
        bound: the new value is bound to PCRs.
        sealed: the value before is in a file with a sealed key: the NV memory was full then.
        full: it is full now.
    """

    before: bytes | None
    after: bytes | None
    commands: int
    changes: int
    bound: bool = False
    sealed: bool = False
    full: bool = False

    @property
    def start(self) -> int:
        """Commands of a start."""
        return len(START) + self.bound


CASES = {
    "a new small value": Case(None, SMALL, 4, 2),
    "a new large value": Case(None, LARGE, 4, 3),
    "small to small": Case(SMALL, SMALLER, 2, 1),
    "small to large": Case(SMALL, LARGE, 2, 3),
    "large to small": Case(LARGE, SMALL, 2, 3),
    "large to large": Case(LARGE, LARGER, 2, 4),
    "a small value, another policy": Case(SMALL, SMALLER, 4, 3, bound=True),
    "a large value, another policy": Case(LARGE, LARGER, 4, 4, bound=True),
    "a new value where NV is full": Case(None, SMALL, 5, 3, full=True),
    "from a sealed key back to NV": Case(LARGE, SMALL, 4, 3, sealed=True),
    "from a sealed key to another": Case(LARGE, LARGER, 5, 6, sealed=True, full=True),
    "a small value is deleted": Case(SMALL, None, 2, 2),
    "a large value is deleted": Case(LARGE, None, 2, 3),
    "a value with a sealed key is deleted": Case(LARGE, None, 0, 2, sealed=True),
}

each_case = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


class Bench:
    """A case, made again and again."""

    def __init__(self, tpm: SimulatedTpm, state_dir: Path, case: Case) -> None:
        self.tpm, self.folder, self.case = tpm, state_dir, case
        self.index: int | None = None
        with open_store(state_dir, tcti=tpm.tcti) as store:
            store.set(OTHER, LARGE[::-1])
            if case.sealed or case.full:
                store.set(NAME, SMALL)  # its room is free when it is deleted
                fill_nv(tpm)
                store.delete(NAME)

    def prepare(self) -> None:
        """What is there before."""
        with open_store(self.folder, tcti=self.tpm.tcti) as store:
            if value_of(store) is not None:
                store.delete(NAME)
            self.index = None
            if self.case.sealed or self.case.full:
                self.tpm.tool("tpm2_nvdefine", "0x01810000", "-s", "64", check=False)
            if self.case.before is not None:
                self.index = store.set(NAME, self.case.before)
            if self.case.sealed and not self.case.full:
                self.tpm.tool("tpm2_nvundefine", "0x01810000")

    def operation(self, tcti: str, *, dies_at_file_change: int | None = None) -> Operation:
        """What is done."""
        pcrs = PCR_7 if self.case.bound else None
        return Operation(self.folder, tcti, NAME, self.case.after, pcrs=pcrs, dies_at_file_change=dies_at_file_change)

    def check(self, *, done: bool = False) -> None:
        """The old value or the new one, at the same NV index, and nothing else; and all goes on."""
        with open_store(self.folder, tcti=self.tpm.tcti) as store:
            value = value_of(store)
            assert value == self.case.after or (value == self.case.before and not done)
            statistics = store.statistics()
            assert statistics.orphans == statistics.lost == statistics.foreign == ()
            ours = [index for index in nv_indices(self.tpm) if 0x01520000 <= index <= 0x015200FF]
            assert len(ours) == statistics.in_nv
            files = {file for entry in store._state.table.entries for file in entry.files}
            assert set(secret_files(self.folder)) == files
            assert contents(self.folder).keys() == {"keys.json", "table.json", "loaded.json", *files}
            index = store.set(NAME, SMALLER)
            assert index == (self.index if value is not None and self.index else index)
            assert store.get(NAME) == SMALLER
            assert store.get(OTHER) == LARGE[::-1]


def value_of(store: SealedStore) -> bytes | None:
    try:
        return store.get(NAME)
    except NoSuchSecretError:
        return None


@each_case
def test_killed_at_any_command_it_leaves_the_old_value_or_the_new_one(
    tpm: SimulatedTpm, state_dir: Path, case: Case
) -> None:
    bench = Bench(tpm, state_dir, case)
    for at in range(1, case.commands + 1):
        for answered in (False, True) if at > case.commands - 2 else (at % 2 == 0,):
            bench.prepare()
            with TpmTap(tpm.tcti) as tap:
                process = bench.operation(tap.tcti)
                tap.kill(process, at=case.start + at, answered=answered)
                assert process.run() == KILLED
            bench.check()


@each_case
def test_killed_before_any_change_of_a_file_it_leaves_the_old_value_or_the_new_one(
    tpm: SimulatedTpm, state_dir: Path, case: Case
) -> None:
    bench = Bench(tpm, state_dir, case)
    for at in range(case.changes):
        bench.prepare()
        assert bench.operation(tpm.tcti, dies_at_file_change=at).run() == KILLED
        bench.check()


@each_case
def test_these_are_all_commands_and_all_changes(tpm: SimulatedTpm, state_dir: Path, case: Case) -> None:
    """One more of each is never reached; and what was acknowledged is there."""
    bench = Bench(tpm, state_dir, case)
    bench.prepare()
    with TpmTap(tpm.tcti) as tap:
        assert bench.operation(tap.tcti, dies_at_file_change=case.changes).run() == 0
        assert len(tap.commands) == case.start + case.commands, tap.commands
        assert tap.commands.count("NV_Write") <= 1
    bench.check(done=True)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_killed_at_any_command_of_the_first_start_the_next_one_finishes(
    tpm: SimulatedTpm, state_dir: Path, *, answered: bool
) -> None:
    """Storage root key, device keys, and what is there: seven commands, and then a set."""
    for at in range(1, 12):
        with TpmTap(tpm.tcti) as tap:
            process = Operation(state_dir, tap.tcti, NAME, SMALL)
            tap.kill(process, at=at, answered=answered)
            assert process.run() == KILLED
        with open_store(state_dir, tcti=tpm.tcti) as store:
            assert value_of(store) in {None, SMALL}
            store.set(NAME, SMALL)
            assert store.get(NAME) == SMALL
            store.delete(NAME)
        assert nv_indices(tpm) == []
        shutil.rmtree(state_dir)
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")


def test_killed_before_any_change_of_a_file_of_the_first_start_the_next_one_finishes(
    tpm: SimulatedTpm, state_dir: Path
) -> None:
    """Both folders, the table, the keys."""
    for at in range(5):
        assert Operation(state_dir, tpm.tcti, NAME, SMALL, dies_at_file_change=at).run() == KILLED
        assert Operation(state_dir, tpm.tcti, NAME, SMALL).run() == 0
        with open_store(state_dir, tcti=tpm.tcti) as store:
            assert store.get(NAME) == SMALL
            store.delete(NAME)
        assert nv_indices(tpm) == []
        shutil.rmtree(state_dir)


def test_killed_while_it_cleans_up_the_next_start_does(tpm: SimulatedTpm, state_dir: Path) -> None:
    """An NV index that a killed set made, and nobody needs; then the next start is killed at each of its commands."""
    bench = Bench(tpm, state_dir, CASES["a new large value"])
    for at in range(1, len(START) + 4):
        bench.prepare()
        leave_an_orphan(bench)
        with TpmTap(tpm.tcti) as tap:
            process = bench.operation(tap.tcti)
            tap.kill(process, at=at, answered=at % 2 == 0)
            assert process.run() == KILLED
        bench.check()


def leave_an_orphan(bench: Bench) -> None:
    with TpmTap(bench.tpm.tcti) as tap:
        process = bench.operation(tap.tcti)
        tap.kill(process, at=len(START) + 4, answered=True)
        assert process.run() == KILLED


def restart(bench: Bench) -> list[str]:
    """What a start sends, without what is flushed for want of a resource manager."""
    with TpmTap(bench.tpm.tcti) as tap:
        with open_store(bench.folder, tcti=tap.tcti):
            pass
        return tap.commands[tap.commands.index("Load") :]


def test_an_nv_index_that_nobody_needs_costs_three_commands_to_remove(tpm: SimulatedTpm, state_dir: Path) -> None:
    bench = Bench(tpm, state_dir, CASES["a new large value"])
    leave_an_orphan(bench)

    assert restart(bench) == [*START, "NV_ReadPublic", "StartAuthSession", "NV_UndefineSpace"]
    assert restart(bench) == START


def test_which_of_two_files_counts_costs_two(tpm: SimulatedTpm, state_dir: Path) -> None:
    """Only where both are there; with a policy on PCRs it costs three, and where that does not hold both stay."""
    bench = Bench(tpm, state_dir, CASES["large to large"])
    bench.prepare()
    with TpmTap(tpm.tcti) as tap:
        process = bench.operation(tap.tcti)
        tap.kill(process, at=len(START) + 2, answered=True)
        assert process.run() == KILLED
    assert len(secret_files(state_dir)) == 3

    assert restart(bench) == [*START, "StartAuthSession", "NV_Read"]
    assert restart(bench) == START
    assert len(secret_files(state_dir)) == 2
    bench.check(done=True)


def test_which_of_two_files_counts_is_found_when_the_policy_holds_again(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti, wish=PolicyWish(pcrs=PCR_7)) as store:
        store.set(NAME, LARGE)
    with TpmTap(tpm.tcti) as tap:
        process = Operation(state_dir, tap.tcti, NAME, LARGER, pcrs=PCR_7)
        tap.kill(process, at=len(START) + 1 + 2, answered=True)
        assert process.run() == KILLED
    extend(tpm)
    with open_store(state_dir, tcti=tpm.tcti) as store, pytest.raises(PolicyRefusedError):
        store.get(NAME)
    assert len(secret_files(state_dir)) == 2
    tpm.restart()
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == LARGER
    assert len(secret_files(state_dir)) == 1


def test_killed_at_random_moments_again_and_again(tpm: SimulatedTpm, state_dir: Path) -> None:
    """Twenty sets and deletions, half of them killed: each acknowledged one is there."""
    moments = random.Random(17)  # noqa: S311 - the same moments each time
    names, values = [b"a", b"b", b"c"], [SMALL, SMALLER, LARGE, LARGER, b"", b"x" * 740, b"x" * 741]
    may_be: dict[bytes, set[bytes | None]] = {name: {None} for name in names}
    for _ in range(20):
        name, value = moments.choice(names), moments.choice([*values, None])
        if value is None and None in may_be[name]:
            continue
        with TpmTap(tpm.tcti) as tap:
            process = Operation(state_dir, tap.tcti, name, value)
            tap.kill(process, at=moments.randrange(1, 16), answered=moments.random() < 0.5)
            may_be[name] = {value} if process.run() == 0 else may_be[name] | {value}
        with open_store(state_dir, tcti=tpm.tcti) as store:
            for each, possible in may_be.items():
                try:
                    found = store.get(each)
                except NoSuchSecretError:
                    found = None
                assert found in possible
                may_be[each] = {found}
            assert len(nv_indices(tpm)) == store.statistics().in_nv == store.statistics().secrets
            assert set(secret_files(state_dir)) == {
                file for entry in store._state.table.entries for file in entry.files
            }


@pytest.mark.parametrize("attributes", ["ownerread|ownerwrite", "authread|authwrite|nt=0x1"], ids=["data", "counter"])
def test_what_somebody_else_made_where_a_killed_set_was_is_not_removed(
    tpm: SimulatedTpm, state_dir: Path, attributes: str
) -> None:
    bench = Bench(tpm, state_dir, CASES["a new small value"])
    (other,) = nv_indices(tpm)
    leave_an_orphan(bench)
    (orphan,) = set(nv_indices(tpm)) - {other}
    tpm.tool("tpm2_nvundefine", f"{orphan:#x}")
    tpm.tool("tpm2_nvdefine", f"{orphan:#x}", "-a", attributes, *([] if "nt" in attributes else ["-s", "64"]))
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.statistics().foreign == (orphan,)
        assert store.set(NAME, SMALL) not in {orphan, other}
    assert orphan in nv_indices(tpm)
