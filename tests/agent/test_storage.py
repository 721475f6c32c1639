"""The store over a simulated TPM: what it costs, what it survives, and what nobody else can read."""

from __future__ import annotations

import json
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, extend, present_state
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import (
    AuthorizationError,
    ForeignKeyError,
    IdentityError,
    NoSuchSecretError,
    PolicyError,
    PolicyRefusedError,
    StateError,
    StorageRootKeyChangedError,
    TpmLockoutError,
    TpmMemoryError,
)
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.record import VALUE_LIMIT
from tpm_mtls_agent.slots import SLOTS, WRITES_LIMIT, index_of
from tpm_mtls_agent.storage import open_store, read_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_agent.sealed_store import SealedStore

NAME, VALUE = b"stripe-api-key-prod", b"sk_live_abc123xyz"
LARGE = b"-----BEGIN PRIVATE KEY-----" * 200
START = ["Load", "StartAuthSession", "Unseal", "FlushContext", "GetCapability"]
MAKE = ["StartAuthSession", "NV_DefineSpace"]
WRITE = ["StartAuthSession", "NV_Write"]
READ = ["StartAuthSession", "NV_Read"]
REMOVE = ["StartAuthSession", "NV_UndefineSpace"]
SEAL = ["StartAuthSession", "Create"]
UNSEAL = ["Load", "StartAuthSession", "Unseal", "FlushContext"]
NV_FULL, POLICY_FAIL = 0x14B, 0x99D

PCR_7 = PolicyWish(pcrs="sha256:7")


class Costs:
    """Commands of a block."""

    def __init__(self, trace: CommandTrace) -> None:
        self._trace = trace
        self._seen = 0

    def __call__(self) -> list[str]:
        """Those since the last call."""
        commands = self._trace.commands()
        new, self._seen = commands[self._seen :], len(commands)
        return new


@pytest.fixture
def store(tpm: SimulatedTpm, state_dir: Path) -> Iterator[SealedStore]:
    with open_store(state_dir, tcti=tpm.tcti) as opened:
        yield opened


@pytest.fixture
def traced(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SealedStore, Costs]]:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_store(state_dir, tcti=trace.tcti) as opened:
        costs = Costs(trace)
        costs()
        yield opened, costs


def nv_indices(tpm: SimulatedTpm) -> list[int]:
    return [int(handle, 16) for handle in tpm.handles("nv-index")]


def secret_files(state_dir: Path) -> list[str]:
    return sorted(path.name for path in (state_dir / "secrets").iterdir() if path.name.endswith(".sealed"))


def fill_nv(tpm: SimulatedTpm, leave: int = 0) -> None:
    """Somebody else takes the NV memory, but for ``leave`` indices of 2,048 bytes."""
    made = []
    for number in range(64):
        index = f"0x{0x01800100 + number:08x}"
        if tpm.tool("tpm2_nvdefine", index, "-s", "2048", check=False).returncode:
            break
        made.append(index)
    for size in ("512", "128", "64", "32", "16", "8"):
        while tpm.tool("tpm2_nvdefine", f"0x{0x01810000 + len(made):08x}", "-s", size, check=False).returncode == 0:
            made.append(size)
    for index in made[:leave]:
        tpm.tool("tpm2_nvundefine", index)


# --- what the document says


def test_the_documents_workflow(store: SealedStore) -> None:
    """Set, get, overwrite in place, delete."""
    index = store.set(NAME, VALUE)
    assert 0x01520000 <= index <= 0x015200FF
    assert store.get(NAME) == VALUE
    assert store.set(NAME, b"sk_live_new_key_456") == index
    assert store.get(NAME) == b"sk_live_new_key_456"
    store.delete(NAME)
    with pytest.raises(NoSuchSecretError, match="no secret of that name") as caught:
        store.get(NAME)
    assert "stripe" not in f"{caught.value}{caught.value.hint}"


def test_what_nobody_set_cannot_be_deleted(store: SealedStore) -> None:
    with pytest.raises(NoSuchSecretError):
        store.delete(NAME)


def test_slots_are_freed_and_reused(tpm: SimulatedTpm, store: SealedStore) -> None:
    index = store.set(NAME, VALUE)
    store.delete(NAME)

    assert nv_indices(tpm) == []
    assert store.set(NAME, VALUE) == index


@pytest.mark.parametrize("size", [0, 1, 36, 37, VALUE_LIMIT, VALUE_LIMIT + 1, 65536])
def test_values_of_every_size_come_back_in_another_process(tpm: SimulatedTpm, state_dir: Path, size: int) -> None:
    value = bytes(range(256)) * 256
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, value[:size])
    tpm.restart()
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == value[:size]


def test_the_index_stays_while_the_value_moves(tpm: SimulatedTpm, state_dir: Path) -> None:
    """From NV to a file with its key in NV, to one with a sealed key, and back."""
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index = store.set(NAME, VALUE)
        assert store.set(NAME, LARGE) == index
        assert len(secret_files(state_dir)) == 1
        assert store.set(NAME, VALUE) == index
        assert secret_files(state_dir) == []
    with open_store(state_dir, tcti=tpm.tcti, wish=PCR_7) as store:
        assert store.set(NAME, VALUE) == index  # an NV index keeps its policy
        assert nv_indices(tpm) == []
        assert len(secret_files(state_dir)) == 1
        assert store.set(NAME, VALUE) == index
        assert nv_indices(tpm) == [index]
        assert secret_files(state_dir) == []


# --- what it costs


def test_a_start_has_five_commands(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage root key is not asked for: its public area is known. The first time it is made, and the keys."""
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_store(state_dir, tcti=trace.tcti) as store:
        srk = ["ReadPublic=0x18b", "CreatePrimary", "EvictControl", "FlushContext"]
        assert trace.commands() == [*srk, *SEAL, "GetCapability"]
        store.set(NAME, LARGE)
        store.set(NAME, VALUE)
    trace.restart()
    with open_store(state_dir, tcti=trace.tcti):
        assert trace.commands() == START


def test_small_values_cost_two_commands_or_four(traced: tuple[SealedStore, Costs]) -> None:
    store, costs = traced
    store.set(NAME, VALUE)
    assert costs() == [*MAKE, *WRITE]
    store.get(NAME)
    assert costs() == READ
    store.set(NAME, VALUE[::-1])
    assert costs() == WRITE
    store.delete(NAME)
    assert costs() == REMOVE


def test_large_values_cost_the_same(traced: tuple[SealedStore, Costs]) -> None:
    store, costs = traced
    store.set(NAME, LARGE)
    assert costs() == [*MAKE, *WRITE]
    store.get(NAME)
    assert costs() == READ
    store.set(NAME, LARGE[::-1])
    assert costs() == WRITE
    store.delete(NAME)
    assert costs() == REMOVE


def test_names_that_nobody_has_and_statistics_cost_nothing(traced: tuple[SealedStore, Costs]) -> None:
    store, costs = traced
    for operation in (store.get, store.delete):
        with pytest.raises(NoSuchSecretError):
            operation(NAME)
    store.statistics()
    store.label(NAME)

    assert costs() == []


def test_a_policy_costs_one_command_more_to_read(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_store(state_dir, tcti=trace.tcti):
        pass
    trace.restart()
    costs = Costs(trace)
    with open_store(state_dir, tcti=trace.tcti, wish=PCR_7) as store:
        assert costs() == [*START[:4], "PCR_Read", START[4]]
        store.set(NAME, VALUE)
        assert costs() == [*MAKE, *WRITE]
        store.get(NAME)
        assert costs() == ["StartAuthSession", "PolicyPCR", "NV_Read"]
        store.set(NAME, LARGE)
        assert costs() == WRITE
        store.get(NAME)
        assert costs() == ["StartAuthSession", "PolicyPCR", "NV_Read"]
    trace.restart()
    costs = Costs(trace)
    with open_store(state_dir, tcti=trace.tcti) as store:
        assert costs() == START
        store.set(NAME, VALUE)  # bound to nothing from now on: the NV index keeps its policy
        assert costs() == [*SEAL, *REMOVE]
        store.get(NAME)
        assert costs() == UNSEAL
        store.set(NAME, VALUE)
        assert costs() == [*MAKE, *WRITE]


def test_where_nv_is_full_a_set_costs_four_commands_too(traced: tuple[SealedStore, Costs], tpm: SimulatedTpm) -> None:
    store, costs = traced
    fill_nv(tpm)
    store.set(NAME, VALUE)
    assert costs() == ["StartAuthSession", f"NV_DefineSpace={NV_FULL:#x}", "FlushContext", *SEAL]
    store.delete(NAME)
    assert costs() == []


# --- where NV memory cannot take it


def test_where_nv_is_full_a_value_goes_into_a_file_with_a_sealed_key(
    tpm: SimulatedTpm, traced: tuple[SealedStore, Costs], state_dir: Path
) -> None:
    store, costs = traced
    fill_nv(tpm)
    index = store.set(NAME, VALUE)
    costs()

    assert index not in nv_indices(tpm)
    assert len(secret_files(state_dir)) == 1
    assert store.get(NAME) == VALUE
    assert costs() == UNSEAL
    assert store.set(NAME, LARGE) == index
    assert store.get(NAME) == LARGE
    assert len(secret_files(state_dir)) == 1


def test_when_there_is_room_again_it_goes_back_into_nv(tpm: SimulatedTpm, store: SealedStore, state_dir: Path) -> None:
    fill_nv(tpm)
    index = store.set(NAME, VALUE)
    tpm.tool("tpm2_nvundefine", "0x01800100")
    assert store.set(NAME, VALUE) == index

    assert index in nv_indices(tpm)
    assert secret_files(state_dir) == []
    assert store.get(NAME) == VALUE


def test_where_nv_is_full_a_value_that_is_there_is_still_overwritten_in_place(
    tpm: SimulatedTpm, store: SealedStore
) -> None:
    index = store.set(NAME, VALUE)
    fill_nv(tpm)
    store.set(NAME, LARGE)

    assert index in nv_indices(tpm)
    assert store.get(NAME) == LARGE


def wear(state_dir: Path, slot: int, writes: int = WRITES_LIMIT) -> None:
    path = state_dir / "secrets" / "table.json"
    table = json.loads(path.read_bytes())
    path.write_text(json.dumps(table | {"writes": {str(slot): writes}}))


def test_a_worn_index_is_given_up_for_a_file(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index = store.set(NAME, VALUE)
    wear(state_dir, index - index_of(0))
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.set(NAME, LARGE) == index
        assert nv_indices(tpm) == []
        assert store.set(NAME, VALUE) == index
        assert nv_indices(tpm) == []
        assert store.get(NAME) == VALUE
        assert store.statistics().worn == (index,)


def test_a_new_secret_avoids_a_worn_index(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index = store.set(NAME, VALUE)
        store.delete(NAME)
    wear(state_dir, index - index_of(0))
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.set(NAME, VALUE) == index_of((index - index_of(0) + 1) % SLOTS)


def test_writes_are_counted_and_seen_without_a_tpm(tpm: SimulatedTpm, state_dir: Path) -> None:
    assert read_statistics(state_dir).nv_writes == {}
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index = store.set(NAME, VALUE)
        store.get(NAME)
        store.set(NAME, LARGE)
        store.set(NAME, VALUE)
        assert store.statistics().nv_writes == {index: 3}
        assert read_statistics(state_dir).nv_writes == {index: 3}, "while it is open, too"
        store.delete(NAME)
    found = read_statistics(state_dir)
    assert (found.secrets, found.free_slots, found.nv_writes) == (0, 256, {index: 3})


def test_somebody_elses_index_is_never_touched(tpm: SimulatedTpm, state_dir: Path) -> None:
    """The slot after it is taken, whether it was there at the start or made since."""
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index = store.set(NAME, VALUE)
        store.delete(NAME)
        tpm.tool("tpm2_nvdefine", f"{index:#x}", "-s", "64")
        assert store.set(NAME, VALUE) == index + 1
        assert store.get(NAME) == VALUE
        store.delete(NAME)
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.statistics().foreign == (index,)
        assert store.set(NAME, VALUE) == index + 1
    assert nv_indices(tpm) == [index, index + 1]


def test_more_than_256_names_are_refused(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
    path = state_dir / "secrets" / "table.json"
    table = json.loads(path.read_bytes())
    entry = table["entries"][0]
    others = set(range(SLOTS)) - {entry["slot"]}
    table["entries"] += [
        {"name": f"{slot:064x}", "slot": slot, "form": "file", "generation": 1} for slot in sorted(others)
    ]
    path.write_text(json.dumps(table))
    with open_store(state_dir, tcti=tpm.tcti) as store:
        with pytest.raises(TpmMemoryError, match="there are 256 secrets") as caught:
            store.set(b"one more", VALUE)
        assert caught.value.rc == NV_FULL
        store.set(NAME, VALUE[::-1])
        assert store.statistics().free_slots == 0


# --- bound to PCRs


def test_a_secret_bound_to_pcrs_is_refused_when_something_else_was_booted(tpm: SimulatedTpm, state_dir: Path) -> None:
    """0x99d, in NV and in a file; the values stay, and come back with the old PCRs."""
    with open_store(state_dir, tcti=tpm.tcti, wish=PCR_7) as store:
        store.set(b"small", VALUE)
        store.set(b"large", LARGE)
        fill_nv(tpm)
        store.set(b"sealed", VALUE)
        assert [store.get(name) for name in (b"small", b"large", b"sealed")] == [VALUE, LARGE, VALUE]
        extend(tpm)
        for name in (b"small", b"large", b"sealed"):
            with pytest.raises(PolicyRefusedError, match="PCR 7") as caught:
                store.get(name)
            assert caught.value.rc == POLICY_FAIL
    tpm.restart()
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert [store.get(name) for name in (b"small", b"large", b"sealed")] == [VALUE, LARGE, VALUE]


def test_it_is_read_as_it_was_bound_however_the_agent_is_run(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti, wish=PCR_7) as store:
        store.set(NAME, VALUE)
        store.set(b"other", VALUE)
    extend(tpm)
    with open_store(state_dir, tcti=tpm.tcti, wish=PCR_7) as store:
        with pytest.raises(PolicyRefusedError):
            store.get(NAME)
        store.set(NAME, VALUE)  # bound to what was booted now
        assert store.get(NAME) == VALUE
        store.delete(b"other")  # needs no PCRs


def test_a_policy_signer_decides_later(tpm: SimulatedTpm, state_dir: Path, tmp_path: Path) -> None:
    """A signed policy is found when it is installed, while the agent runs; and the next one after an update."""
    operator = Operator(tmp_path)
    wish = PolicyWish(signer=operator.signer, counter=None)
    with open_store(state_dir, tcti=tpm.tcti, wish=wish) as store:
        store.set(NAME, VALUE)
        with pytest.raises(PolicyError, match="there is no policy signed by"):
            store.get(NAME)
        first = operator.sign(*present_state(tpm, "sha256:7").pcrs)
        (state_dir / "first.signed-policy.json").write_bytes(encode(first))
        assert store.get(NAME) == VALUE
        extend(tpm)
        with pytest.raises(PolicyRefusedError):
            store.get(NAME)
        second = operator.sign(*present_state(tpm, "sha256:7").pcrs, version=2)
        (state_dir / "second.signed-policy.json").write_bytes(encode(second))
        assert store.get(NAME) == VALUE
        assert store.set(NAME, LARGE) == store.set(NAME, VALUE)


# --- another TPM


def test_after_a_clear_the_secrets_are_lost_and_the_folder_stays(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        store.set(b"large", LARGE)
        before = contents(state_dir)
        tpm.tool("tpm2_clear", "-c", "p")
        for operation in (lambda: store.get(NAME), lambda: store.get(b"large"), lambda: store.set(NAME, VALUE)):
            with pytest.raises(StorageRootKeyChangedError, match="there is none now") as caught:
                operation()
            assert "lost" in caught.value.hint
    with pytest.raises(StorageRootKeyChangedError, match="there is none now"), open_store(state_dir, tcti=tpm.tcti):
        pass
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    with pytest.raises(StorageRootKeyChangedError, match="it is 000b") as caught, open_store(state_dir, tcti=tpm.tcti):
        pass
    assert "lost; keep the files" in caught.value.hint
    assert contents(state_dir).items() >= {name: data for name, data in before.items() if "table" not in name}.items()


def contents(state_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state_dir / "secrets").iterdir()}


def test_another_machines_folder_is_refused_and_stays(
    make_tpm: Callable[[], SimulatedTpm], state_dir: Path, tmp_path: Path
) -> None:
    tpm, other = make_tpm(), make_tpm()
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, LARGE)
    with open_store(tmp_path / "others", tcti=other.tcti) as store:
        store.set(NAME, VALUE)
    before = contents(state_dir)
    with (
        pytest.raises(StorageRootKeyChangedError, match="storage root key is not"),
        open_store(state_dir, tcti=other.tcti),
    ):
        pass

    assert contents(state_dir) == before
    assert len(nv_indices(other)) == 1
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == LARGE


def test_a_replaced_storage_root_key_is_told(tpm: SimulatedTpm, state_dir: Path, tmp_path: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "rsa", "-c", "other.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "other.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    with pytest.raises(StorageRootKeyChangedError, match="it is 000b"), open_store(state_dir, tcti=tpm.tcti):
        pass
    assert len(nv_indices(tpm)) == 1


def test_the_identitys_storage_root_key_is_the_one_from_the_beginning(tpm: SimulatedTpm, state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "identity.json").write_text(json.dumps(IDENTITY | {"srk_name": "000b" + "00" * 32}))
    with pytest.raises(StorageRootKeyChangedError, match="is not 000b0000"), open_store(state_dir, tcti=tpm.tcti):
        pass
    with open_tpm(tpm.tcti) as opened:
        name = opened.srk.ensure().name.hex()
    (state_dir / "identity.json").write_text(json.dumps(IDENTITY | {"srk_name": name}))
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)


IDENTITY = {
    "format": 1,
    "device": "sensor-17",
    "key": "handle:0x81000100",
    "algorithm": "ecc-p256",
    "key_name": "000b" + "11" * 32,
    "tpm_vendor": "SW",
    "tpm_firmware": "1.2.3.4",
    "reset_count": 0,
    "ca_url": "https://ca.example",
    "enrolled_by": "token",
}


# --- what somebody else did


def test_an_index_that_somebody_removed_is_told_and_can_be_set_or_deleted(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        index, other = store.set(NAME, VALUE), store.set(b"large", LARGE)
        tpm.tool("tpm2_nvundefine", f"{index:#x}")
        tpm.tool("tpm2_nvundefine", f"{other:#x}")
        with pytest.raises(IdentityError, match=f"lost: somebody removed its NV index {index:#010x}"):
            store.get(NAME)
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.statistics().lost == tuple(sorted((index, other)))
        assert store.set(NAME, VALUE) == index
        assert store.get(NAME) == VALUE
        store.delete(b"large")
        assert store.statistics().lost == ()
    assert secret_files(state_dir) == []


def test_one_that_is_removed_while_the_agent_runs_is_made_anew(
    tpm: SimulatedTpm, store: SealedStore, state_dir: Path
) -> None:
    index = store.set(NAME, LARGE)
    tpm.tool("tpm2_nvundefine", f"{index:#x}")
    assert store.set(NAME, LARGE[::-1]) == index
    assert store.get(NAME) == LARGE[::-1]
    assert len(secret_files(state_dir)) == 1


def test_an_index_that_somebody_put_in_its_place_is_neither_read_nor_removed(
    tpm: SimulatedTpm, store: SealedStore
) -> None:
    index = store.set(NAME, VALUE)
    tpm.tool("tpm2_nvundefine", f"{index:#x}")
    tpm.tool("tpm2_nvdefine", f"{index:#x}", "-s", "64", "-a", "authread|authwrite|no_da")
    tpm.tool("tpm2_nvwrite", f"{index:#x}", "-C", f"{index:#x}", "-i", "-", check=False)
    with pytest.raises(IdentityError, match="is lost"):
        store.get(NAME)
    store.set(b"other", VALUE)
    assert store.set(NAME, LARGE) == index
    assert store.get(NAME) == LARGE
    assert index in nv_indices(tpm)
    store.delete(NAME)
    assert index in nv_indices(tpm)
    assert store.statistics().foreign == (index,)


def test_a_file_that_was_removed_is_told(store: SealedStore, state_dir: Path) -> None:
    store.set(NAME, LARGE)
    file = secret_files(state_dir)[0]
    (state_dir / "secrets" / file).unlink()
    with pytest.raises(IdentityError, match="is gone"):
        store.get(NAME)
    store.set(NAME, LARGE)
    assert store.get(NAME) == LARGE


def test_an_older_file_is_refused_even_with_the_table_of_its_time(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path
) -> None:
    """The TPM has another key by then: what was overwritten cannot be brought back from a copy of the disk."""
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, LARGE)
    shutil.copytree(state_dir, tmp_path / "copy")
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, LARGE[::-1])
    with (
        open_store(tmp_path / "copy", tcti=tpm.tcti) as store,
        pytest.raises(IdentityError, match="is gone"),
    ):
        store.get(NAME)
    old, new = (secret_files(folder)[0] for folder in (tmp_path / "copy", state_dir))
    shutil.copy(tmp_path / "copy" / "secrets" / old, state_dir / "secrets" / new)
    with (
        open_store(state_dir, tcti=tpm.tcti) as store,
        pytest.raises(IdentityError, match="of another time"),
    ):
        store.get(NAME)


def test_two_secrets_files_cannot_be_exchanged(store: SealedStore, state_dir: Path) -> None:
    store.set(NAME, LARGE)
    store.set(b"other", LARGE[::-1])
    one, other = (state_dir / "secrets" / file for file in secret_files(state_dir))
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    for name in (NAME, b"other"):
        with pytest.raises(IdentityError, match="another secret's"):
            store.get(name)


def test_a_small_value_is_the_tpms_whatever_the_disk_says(tpm: SimulatedTpm, state_dir: Path, tmp_path: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
    shutil.copytree(state_dir, tmp_path / "copy")
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, b"newer")
    with open_store(tmp_path / "copy", tcti=tpm.tcti) as store:
        assert store.get(NAME) == b"newer"


@pytest.mark.parametrize("wish", [None, PCR_7], ids=["by value", "by policy"])
def test_an_old_table_that_knows_a_file_where_the_tpm_has_a_newer_value_is_told(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, wish: PolicyWish | None
) -> None:
    with open_store(state_dir, tcti=tpm.tcti, wish=wish) as store:
        fill_nv(tpm)
        index = store.set(NAME, VALUE)
        shutil.copytree(state_dir, tmp_path / "copy")
        tpm.tool("tpm2_nvundefine", "0x01800100")
        store.set(NAME, b"newer")
    with open_store(tmp_path / "copy", tcti=tpm.tcti, wish=wish) as store:
        with pytest.raises(IdentityError, match="older than its value in NV"):
            store.get(NAME)
        assert store.set(NAME, b"newest") == index
        assert store.get(NAME) == b"newest"
    with open_store(tmp_path / "copy", tcti=tpm.tcti) as store:
        assert store.get(NAME) == b"newest"


def test_somebody_elses_index_in_the_slot_of_a_file_does_not_hinder(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        fill_nv(tpm)
        index = store.set(NAME, VALUE)
        tpm.tool("tpm2_nvundefine", "0x01800100")
    for attributes in ("authread|authwrite|no_da", "ownerread|ownerwrite", "authread|authwrite|nt=0x1"):
        tpm.tool("tpm2_nvdefine", f"{index:#x}", "-a", attributes, *([] if "nt" in attributes else ["-s", "64"]))
        if "nt" not in attributes:
            tpm.tool(
                "tpm2_nvwrite",
                f"{index:#x}",
                "-C",
                f"{index:#x}" if "auth" in attributes else "o",
                "-i",
                "/etc/hostname",
            )
        with open_store(state_dir, tcti=tpm.tcti) as store:
            assert store.get(NAME) == VALUE
            assert store.set(NAME, VALUE) == index
            assert store.get(NAME) == VALUE
        tpm.tool("tpm2_nvundefine", f"{index:#x}")


def test_in_lockout_it_goes_on(tpm: SimulatedTpm, state_dir: Path, tmp_path: Path) -> None:
    """Nothing of ours is subject to it. Where a storage root key is, 0x921 is told, and nothing is lost."""
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        store.set(b"large", LARGE)
    lock(tpm, tmp_path)
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == VALUE
        assert store.get(b"large") == LARGE
        store.set(b"other", VALUE)


def lock(tpm: SimulatedTpm, folder: Path) -> None:
    """Wrong authorization values until the TPM goes into lockout."""
    tpm.tool("tpm2_dictionarylockout", "-s", "-n", "1", "-t", "1000", "-l", "1000")
    tpm.tool("tpm2_createprimary", "-C", "o", "-p", "right", "-c", "locked.ctx", cwd=folder)
    for _ in range(2):
        wrong = tpm.tool(
            "tpm2_create", "-C", "locked.ctx", "-P", "wrong", "-u", "u", "-r", "r", check=False, cwd=folder
        )
        assert wrong.returncode
    assert "0x921" in wrong.stderr
    tpm.flush()


def test_a_storage_root_key_under_lockout_protection_says_so(
    tpm: SimulatedTpm, state_dir: Path, tmp_path: Path
) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt"
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-a", attributes, "-c", "srk.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        lock(tpm, tmp_path)
    with pytest.raises(TpmLockoutError) as caught, open_store(state_dir, tcti=tpm.tcti):
        pass
    assert caught.value.rc == 0x921
    tpm.tool("tpm2_dictionarylockout", "-c")
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == VALUE


def test_an_owner_with_an_authorization_value_is_asked_for_it(tpm: SimulatedTpm, state_dir: Path) -> None:
    from tpm_mtls.authorization import Secret

    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        tpm.tool("tpm2_changeauth", "-c", "o", "owner")
        for operation in (lambda: store.set(b"other", VALUE), lambda: store.delete(NAME)):
            with pytest.raises(AuthorizationError):
                operation()
        assert store.get(NAME) == VALUE, "its removal was refused"
        store.set(NAME, VALUE[::-1])
        with pytest.raises(NoSuchSecretError):
            store.get(b"other")
    with open_store(state_dir, tcti=tpm.tcti, owner_authorization=Secret(b"owner")) as store:
        store.set(b"other", VALUE)
        store.delete(NAME)
    assert len(nv_indices(tpm)) == 1


# --- the folder


def test_one_process_at_a_time(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        with pytest.raises(StateError, match="another process has"), open_store(state_dir, tcti=tpm.tcti):
            pass
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.get(NAME) == VALUE


def test_the_folder_is_for_nobody_else(tpm: SimulatedTpm, state_dir: Path) -> None:
    (state_dir / "secrets").mkdir(parents=True, mode=0o755)
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, LARGE)
    folder = state_dir / "secrets"

    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("file", ["keys.json", "table.json"])
def test_without_one_of_its_files_the_others_are_not_touched(tpm: SimulatedTpm, state_dir: Path, file: str) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, LARGE)
    (state_dir / "secrets" / file).unlink()
    before = contents(state_dir)
    with pytest.raises(IdentityError, match=f"{file} is missing") as caught, open_store(state_dir, tcti=tpm.tcti):
        pass
    assert "restore" in caught.value.hint
    assert contents(state_dir) == before


@pytest.mark.parametrize("file", ["keys.json", "table.json"])
def test_a_damaged_file_is_told(tpm: SimulatedTpm, state_dir: Path, file: str) -> None:
    with open_store(state_dir, tcti=tpm.tcti):
        pass
    path = state_dir / "secrets" / file
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IdentityError, match=f"{file} is damaged"), open_store(state_dir, tcti=tpm.tcti):
        pass


def test_keys_that_were_changed_are_told(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti):
        pass
    path = state_dir / "secrets" / "keys.json"
    keys = json.loads(path.read_bytes())
    path.write_text(json.dumps(keys | {"private": keys["private"][:-2] + "00"}))
    with pytest.raises(ForeignKeyError, match="damaged"), open_store(state_dir, tcti=tpm.tcti):
        pass
    path.write_text(json.dumps(keys | {"srk_name": "000b" + "00" * 32}))
    with pytest.raises(IdentityError, match="another name"), open_store(state_dir, tcti=tpm.tcti):
        pass
    with open_tpm(tpm.tcti) as opened:
        short = opened.sealing.seal(b"short")
    parts = {"public": short.public.data.hex(), "private": short.private.hex()}
    path.write_text(json.dumps(keys | parts))
    with pytest.raises(IdentityError, match="device keys are damaged"), open_store(state_dir, tcti=tpm.tcti):
        pass


def test_neither_name_nor_value_nor_key_is_on_the_disk_or_in_nv(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        store.set(b"large-secret-name", LARGE)
        keys = store._keys
        fill_nv(tpm)
        store.set(b"sealed-secret-name", VALUE)
        tpm.stop()
    everything = b"".join(contents(state_dir).values()) + "".join(contents(state_dir)).encode()
    everything += str(store.statistics()).encode() + repr(store._table).encode()
    for secret in (
        NAME,
        VALUE,
        b"large-secret-name",
        LARGE[:20],
        b"sealed-secret-name",
        keys.root,
        keys.authorization.value,
    ):
        assert secret not in everything
        assert secret.hex().encode() not in everything


def test_the_tpms_bus_shows_neither_values_nor_keys(
    traced: tuple[SealedStore, Costs], tpm: SimulatedTpm, tmp_path: Path
) -> None:
    store, _ = traced
    store.set(NAME, VALUE)
    assert store.get(NAME) == VALUE
    fill_nv(tpm)
    store.set(b"sealed", LARGE)
    assert store.get(b"sealed") == LARGE
    bus = b"".join(path.read_bytes() for path in tmp_path.glob("*.pcapng"))
    for secret in (NAME, VALUE, store._keys.root, store._keys.authorization.value):
        assert secret not in bus


def test_the_folder_has_no_more_files_than_secrets_need(store: SealedStore, state_dir: Path) -> None:
    for round_ in range(3):
        store.set(NAME, LARGE)
        store.set(b"b", VALUE if round_ % 2 else LARGE)
    assert len(secret_files(state_dir)) == 2
    store.delete(NAME)
    store.delete(b"b")
    assert contents(state_dir).keys() == {"keys.json", "table.json", "loaded.json"}


def test_a_label_is_known_in_any_thread(store: SealedStore) -> None:
    labels: list[str] = []
    thread = threading.Thread(target=lambda: labels.append(store.label(NAME)))
    thread.start()
    thread.join()

    assert labels == [store.label(NAME)]
    assert len(labels[0]) == 16


def test_a_policy_of_pcrs_that_the_tpm_does_not_keep_is_refused_before_anything_is_set(
    tpm: SimulatedTpm, state_dir: Path
) -> None:
    tpm.tool("tpm2_pcrallocate", "sha256:all+sha1:none")
    tpm.restart()
    from tpm_mtls.errors import AlgorithmUnsupportedError

    with (
        pytest.raises(AlgorithmUnsupportedError, match="no PCR bank sha1"),
        open_store(state_dir, tcti=tpm.tcti, wish=PolicyWish(pcrs="sha1:7")),
    ):
        pass
