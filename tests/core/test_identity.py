"""The identity folder says which key, certificate and trust anchor a device has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tpm_mtls.errors import IdentityError, StorageError
from tpm_mtls.identity import IdentityRecord, load_identity, load_record, save_record
from tpm_mtls.key_reference import KeyFile, PersistentHandle

RECORD = IdentityRecord(
    device="sensor-17",
    key="handle:0x81000100",
    algorithm="ecc-p256",
    key_name="000b" + "11" * 32,
    srk_name="000b" + "22" * 32,
    tpm_vendor="IBM",
    tpm_firmware="20191023.00163636",
    reset_count=3,
    ca_url="https://ca.example",
    enrolled_by="token",
)


def test_a_saved_record_is_loaded_again(state_dir: Path) -> None:
    save_record(state_dir, RECORD)
    assert load_record(state_dir) == RECORD
    identity = load_identity(state_dir)
    assert identity.key == PersistentHandle(0x81000100)
    assert identity.certificate == state_dir / "device.cert.pem"
    assert identity.trust == state_dir / "ca.cert.pem"


def test_a_key_file_is_relative_to_the_folder(state_dir: Path) -> None:
    save_record(state_dir, msgspec.structs.replace(RECORD, key="device.key.pem"))
    assert load_identity(state_dir).key == KeyFile(state_dir / "device.key.pem")
    save_record(state_dir, msgspec.structs.replace(RECORD, key="/elsewhere/key.pem"))
    assert load_identity(state_dir).key == KeyFile(Path("/elsewhere/key.pem"))


def test_an_empty_folder_says_how_to_enroll(state_dir: Path) -> None:
    assert load_record(state_dir) is None
    with pytest.raises(IdentityError, match="there is no identity in") as caught:
        load_identity(state_dir)
    assert "keygen first-boot" in caught.value.hint


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        msgspec.json.encode(RECORD).replace(b'"device"', b'"devise"'),
        msgspec.json.encode(RECORD).replace(b'"reset_count":3', b'"reset_count":"3"'),
    ],
)
def test_a_damaged_record_is_refused(state_dir: Path, damage: bytes) -> None:
    save_record(state_dir, RECORD)
    (state_dir / "identity.json").write_bytes(damage)
    with pytest.raises(IdentityError, match="is damaged"):
        load_record(state_dir)


def test_a_record_of_a_newer_version_is_not_guessed_at(state_dir: Path) -> None:
    save_record(state_dir, msgspec.structs.replace(RECORD, format=2))
    with pytest.raises(IdentityError, match="has format 2, expected 1"):
        load_record(state_dir)


def test_a_record_that_names_no_key_is_damaged(state_dir: Path) -> None:
    save_record(state_dir, msgspec.structs.replace(RECORD, key="handle:oops"))
    with pytest.raises(IdentityError, match="is damaged: not a handle"):
        load_identity(state_dir)


def test_a_folder_in_the_place_of_the_record_is_a_storage_error(state_dir: Path) -> None:
    (state_dir / "identity.json").mkdir(parents=True)
    with pytest.raises(StorageError, match="is a directory"):
        load_record(state_dir)


def test_a_record_from_before_there_were_software_keys_is_of_a_tpms(state_dir: Path) -> None:
    save_record(state_dir, RECORD)
    path = state_dir / "identity.json"
    before = b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b"is_tpm" not in line)
    assert before != path.read_bytes()
    path.write_bytes(before)
    assert load_record(state_dir) == RECORD


SOFT = IdentityRecord(
    is_tpm=False,
    device="sensor-17",
    key="device.key.pem",
    algorithm="ecc-p256",
    ca_url="https://ca.example",
    enrolled_by="token",
)


def test_the_record_of_a_software_key_is_loaded_again(state_dir: Path) -> None:
    save_record(state_dir, SOFT)
    assert load_record(state_dir) == SOFT
    assert load_identity(state_dir).key == KeyFile(state_dir / "device.key.pem")


@pytest.mark.parametrize(
    "changes",
    [
        {"srk_name": "000b" + "22" * 32},
        {"ek_sha256": "33" * 32},
        {"reset_count": 1},
        {"is_tpm": True},
        {"key": "handle:0x81000100"},
        {"enrolled_by": "tpm"},
    ],
)
def test_a_record_that_contradicts_itself_about_the_tpm_is_damaged(state_dir: Path, changes: dict[str, Any]) -> None:
    save_record(state_dir, msgspec.structs.replace(SOFT, **changes))
    with pytest.raises(IdentityError, match="is damaged"):
        load_record(state_dir)
