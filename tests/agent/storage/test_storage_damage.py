"""The store and what somebody else did: another TPM, a removed or exchanged NV index, files of another time."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from support.secret_store import contents, fill_nv, nv_indices, secret_files
from tpm_mtls.errors import (
    IdentityError,
    StorageRootKeyChangedError,
)
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_agent.storage.sealed_store import SealedStore

NAME, VALUE = b"stripe-api-key-prod", b"sk_live_abc123xyz"
LARGE = b"-----BEGIN PRIVATE KEY-----" * 200

PCR_7 = PolicyWish(pcrs="sha256:7")


@pytest.fixture
def store(tpm: SimulatedTpm, state_dir: Path) -> Iterator[SealedStore]:
    with open_store(state_dir, tcti=tpm.tcti) as opened:
        yield opened


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
    with open_store(state_dir, tcti=tpm.tcti, wish=wish) as store:
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
