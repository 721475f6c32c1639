"""Policies are found by the key's Name, in any state of their folders."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tpm_mtls_relay.policies.fields import SIZE_LIMIT, PolicyFileError
from tpm_mtls_relay.policies.file import Authorize
from tpm_mtls_relay.policies.folders import FILES_LIMIT, SIGNED_LIMIT, PolicyFolders

if TYPE_CHECKING:
    from pathlib import Path

NAME = bytes.fromhex("000b" + "ab" * 32)
SIGNER = bytes.fromhex("000b" + "cd" * 32)
AUTHORIZE = Authorize(b"", SIGNER, b"ref")


def write_key_policy(folder: Path, assertions: int = 1, *, name: bytes = NAME) -> Path:
    path = folder / f"{NAME.hex()}.policy.json"
    policy = [{"type": "auth-value"}] * assertions
    path.write_text(json.dumps({"format": 1, "name": name.hex(), "policy": policy}))
    return path


def write_signed(folder: Path, version: int, *, signer: bytes = SIGNER, file: str = "", **changes: object) -> None:
    fields = {
        "format": 1,
        "signer": signer.hex(),
        "policy_ref": b"ref".hex(),
        "version": version,
        "policy": [{"type": "auth-value"}],
        "digest": "00" * 32,
        "signature": "00",
    }
    (folder / (file or f"{version:03}.signed-policy.json")).write_text(json.dumps(fields | changes))


def test_the_first_folder_that_has_the_key_counts(tmp_path: Path) -> None:
    first, second, missing = tmp_path / "first", tmp_path / "second", tmp_path / "missing"
    first.mkdir()
    second.mkdir()
    folders = PolicyFolders([str(missing), str(first), str(second)])
    assert folders.key_policy(NAME) is None
    write_key_policy(second, 2)
    assert len(folders.key_policy(NAME) or ()) == 2
    write_key_policy(first, 1)
    assert len(folders.key_policy(NAME) or ()) == 1
    assert folders.key_policy(SIGNER) is None


def test_another_keys_policy_under_the_keys_name_is_refused(tmp_path: Path) -> None:
    write_key_policy(tmp_path, name=SIGNER)
    with pytest.raises(PolicyFileError, match="another key's"):
        PolicyFolders([str(tmp_path)]).key_policy(NAME)


def test_what_is_no_file_is_refused_and_nothing_blocks(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME.hex()}.policy.json"
    folders = PolicyFolders([str(tmp_path)])
    path.symlink_to(path)
    with pytest.raises(PolicyFileError, match="cannot be read"):
        folders.key_policy(NAME)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PolicyFileError, match="no regular file"):
        folders.key_policy(NAME)
    path.unlink()
    path.mkdir()
    with pytest.raises(PolicyFileError, match="no regular file"):
        folders.key_policy(NAME)


def test_a_file_that_the_kernel_does_not_hand_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{NAME.hex()}.policy.json").symlink_to("/proc/self/mem")
    with pytest.raises(PolicyFileError, match="cannot be read"):
        PolicyFolders([str(tmp_path)]).key_policy(NAME)


def test_a_file_is_read_to_its_limit_only(tmp_path: Path) -> None:
    path = write_key_policy(tmp_path)
    path.write_text(path.read_text().ljust(SIZE_LIMIT))
    assert PolicyFolders([str(tmp_path)]).key_policy(NAME)
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse: reading all of it would take the machine's memory
    with pytest.raises(PolicyFileError, match="more than 65536 bytes"):
        PolicyFolders([str(tmp_path)]).key_policy(NAME)


def test_signed_policies_are_the_newest_first_and_not_more_than_are_tried(tmp_path: Path) -> None:
    folders = PolicyFolders([str(tmp_path / "missing"), str(tmp_path), str(tmp_path)])
    assert folders.signed_policies(AUTHORIZE) == ([], None)
    for version in (3, 20, 1, *range(4, 19)):
        write_signed(tmp_path, version)
    write_signed(tmp_path, 30, signer=NAME)
    write_signed(tmp_path, 31, policy_ref="")
    write_signed(tmp_path, 32, file=".032.signed-policy.json")
    write_signed(tmp_path, 33, file="033.json")
    found, damage = folders.signed_policies(AUTHORIZE)
    assert damage is None
    assert [signed.version for signed in found] == [20, *range(18, 3, -1)]
    assert len(found) == SIGNED_LIMIT


def test_a_damaged_one_is_reported_and_the_others_count(tmp_path: Path) -> None:
    write_signed(tmp_path, 1)
    write_signed(tmp_path, 2, format=7)
    (tmp_path / "gone.signed-policy.json").symlink_to("nowhere")
    found, damage = PolicyFolders([str(tmp_path)]).signed_policies(AUTHORIZE)
    assert [signed.version for signed in found] == [1]
    assert isinstance(damage, PolicyFileError)


def test_a_crowded_folder_is_not_read_whole(tmp_path: Path) -> None:
    write_signed(tmp_path, 0)
    for number in range(FILES_LIMIT):
        write_signed(tmp_path, 1, signer=NAME, file=f"z{number:02}.signed-policy.json")
    assert PolicyFolders([str(tmp_path)]).signed_policies(AUTHORIZE) == ([], None)


def test_the_state_differs_when_a_file_comes_goes_or_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folders = PolicyFolders([str(folder)])
    states = [folders.state()]
    folder.mkdir()
    for change in (
        lambda: None,
        lambda: write_signed(folder, 1),
        lambda: (folder / "001.signed-policy.json").replace(folder / "002.signed-policy.json"),
        (folder / "002.signed-policy.json").unlink,
    ):
        change()
        os.utime(folder, ns=(0, len(states) * 10**9))  # the clock of a file system may be a coarse one
        states.append(folders.state())
        assert folders.state() == states[-1]
    assert len(set(states)) == len(states)
