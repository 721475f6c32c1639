"""The store over a simulated TPM: what it costs, what it survives, and what nobody else can read."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from support.other_user import give, needs_root, not_given
from support.policies import Operator, extend, present_state
from support.secret_store import contents, fill_nv, nv_indices, secret_files
from support.tpm_commands import DirectTpm
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import (
    AuthorizationError,
    ForeignKeyError,
    IdentityError,
    NoSuchSecretError,
    PolicyError,
    PolicyRefusedError,
    StateError,
    TpmLockoutError,
    TpmMemoryError,
)
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.storage.opening import open_store, read_statistics
from tpm_mtls_agent.storage.record import VALUE_LIMIT
from tpm_mtls_agent.storage.slots import SLOTS, WRITES_LIMIT, index_of
from tpm_mtls_relay.messages.wire import simple_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_agent.storage.sealed_store import SealedStore

NAME, VALUE = b"stripe-api-key-prod", b"sk_live_abc123xyz"
LARGE = b"-----BEGIN PRIVATE KEY-----" * 200
START = ["Load", "StartAuthSession", "Unseal", "FlushContext", "GetCapability"]
MAKE = ["StartAuthSession", "NV_DefineSpace"]
WRITE = ["StartAuthSession", "NV_Write"]
READ = ["StartAuthSession", "NV_Read"]
REMOVE = ["StartAuthSession", "NV_UndefineSpace"]
SEAL = ["StartAuthSession", "Create"]
UNSEAL = ["Load", "StartAuthSession", "Unseal", "FlushContext"]
START_HMAC_SESSION = simple_command(0x176, bytes.fromhex("40000007 40000007 0010" + "00" * 16 + "0000 00 0010 000b"))
NV_FULL, POLICY_FAIL = 0x14B, 0x99D

PCR_7 = PolicyWish(pcrs="sha256:7")


@needs_root
def test_secrets_that_root_stores_are_of_the_folders_owner(tpm: SimulatedTpm, tmp_path: Path) -> None:
    folder = give(tmp_path / "state")
    with open_store(folder, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        store.set(b"large", LARGE)
        store.delete(b"large")
    assert not not_given(folder)


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
    refused = ["StartAuthSession", f"NV_DefineSpace={NV_FULL:#x}", "FlushContext"]
    assert costs() == [*refused, *SEAL], "once: then it is known"
    store.set(NAME, VALUE)
    store.set(b"other", LARGE)
    assert costs() == [*SEAL, *SEAL]
    store.delete(NAME)
    assert costs() == []


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


def test_when_there_is_room_again_it_goes_back_into_nv(tpm: SimulatedTpm, state_dir: Path) -> None:
    """After the next start, where somebody else made room; at once, where that was a secret of ours."""
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(b"ours", VALUE)
        fill_nv(tpm)
        index, other = store.set(NAME, VALUE), store.set(b"other", VALUE)
        store.delete(b"ours")
        assert store.set(NAME, VALUE) == index
        assert index in nv_indices(tpm)
        tpm.tool("tpm2_nvundefine", "0x01800100")
    with open_store(state_dir, tcti=tpm.tcti) as store:
        assert store.set(b"other", VALUE) == other
        assert other in nv_indices(tpm)
        assert secret_files(state_dir) == []
        assert store.get(NAME) == store.get(b"other") == VALUE


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
    everything += str(store.statistics()).encode() + repr(store._state.table).encode()
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


def test_where_others_hold_all_sessions_nothing_is_changed_and_left(tpm: SimulatedTpm, state_dir: Path) -> None:
    with open_store(state_dir, tcti=tpm.tcti) as store:
        store.set(NAME, VALUE)
        for _ in range(3):
            DirectTpm(tpm)(START_HMAC_SESSION)
        for operation in (
            lambda: store.get(NAME),
            lambda: store.set(NAME, LARGE),
            lambda: store.set(b"other", LARGE),
            lambda: store.delete(NAME),
        ):
            with pytest.raises(TpmMemoryError, match="session slots are exhausted") as caught:
                operation()
            assert caught.value.rc == 0x903
        tpm.tool("tpm2_flushcontext", "--loaded-session")
        assert store.get(NAME) == VALUE
        assert store.statistics().secrets == 1
        assert secret_files(state_dir) == []
