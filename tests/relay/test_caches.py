"""Answers that cannot change are kept, for this TPM and no other, and a damaged or foreign file is as good as none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.shortcuts import ALGORITHMS, COMMANDS, PROPERTIES, TappedShortcuts, shortcuts_before
from support.tpm_commands import get_capability, hash_command
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.responses import success
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, simple_command
from tpm_mtls_relay.runtime_folder import runtime_folder
from tpm_mtls_relay.shortcuts.caches import FILES, LIFETIME, MEMORY_LIMIT, AnswerFile, Answers
from tpm_mtls_relay.shortcuts.hashing import digest_of
from tpm_mtls_relay.shortcuts.virtual_handles import FIRST

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

P256 = simple_command(commands.ECC_PARAMETERS, b"\0\x03")
CURVES = get_capability(8, 0, 100)
FIXED = (PROPERTIES, ALGORITHMS, COMMANDS, CURVES, P256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private folder."""
    made = tmp_path / "private"
    made.mkdir(mode=0o700)
    return made


def test_the_tpm_is_asked_once_for_what_cannot_change(tpm: SimulatedTpm) -> None:
    with shortcuts_before(tpm) as layers:
        answers = [layers(command) for command in FIXED]
        layers.sent.clear()
        assert [layers(command) for command in FIXED] == answers
        assert layers.sent == []


@pytest.mark.parametrize(
    "command",
    [
        get_capability(1, 0x81000000, 64),  # handles
        get_capability(3, 0, 64),  # commands that need physical presence
        get_capability(4, 0, 64),  # commands that are audited
        get_capability(5, 0, 1),  # PCR banks
        get_capability(6, 0x200, 64),  # variable properties
        simple_command(commands.READ_PUBLIC, handles=(0x81000001,)),
        simple_command(0x17B, b"\0\x08"),  # GetRandom
    ],
)
def test_the_tpm_is_asked_each_time_for_what_can(tpm: SimulatedTpm, command: bytes) -> None:
    layers = TappedShortcuts(tpm, None, FIRST)
    layers(command)
    layers(PROPERTIES)
    assert len(layers.sent_for(command)) == 1


def test_refusals_and_commands_with_sessions_are_not_kept(tpm: SimulatedTpm) -> None:
    with shortcuts_before(tpm) as layers:
        unknown = simple_command(commands.ECC_PARAMETERS, b"\0\x77")
        cut = get_capability(0, 0, 169)[:-1]
        cut = HEADER.pack(0x8001, len(cut), commands.GET_CAPABILITY) + cut[HEADER.size :]
        with_session = HEADER.pack(SESSIONS, len(PROPERTIES), commands.GET_CAPABILITY) + PROPERTIES[HEADER.size :]
        for command in (unknown, cut, with_session):
            assert code_of(layers(command)) != 0
            assert len(layers.sent_for(command)) == 1


def test_the_next_program_asks_for_the_fixed_properties_only(tpm: SimulatedTpm, folder: Path) -> None:
    with shortcuts_before(tpm, folder=folder) as layers:
        answers = [layers(command) for command in FIXED]
        assert layers.sent == ["GET_CAPABILITY"] * 4 + ["ECC_PARAMETERS"]
    with shortcuts_before(tpm, folder=folder) as layers:
        assert [layers(command) for command in FIXED] == answers
        assert layers.sent == ["GET_CAPABILITY"]
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_before_the_tpm_has_said_who_it_is_nothing_is_taken_from_the_file(tpm: SimulatedTpm, folder: Path) -> None:
    with shortcuts_before(tpm, folder=folder):
        pass
    layers = TappedShortcuts(tpm, folder, FIRST)
    assert layers.sent_for(ALGORITHMS) == ["GET_CAPABILITY"]
    layers(get_capability(6, 0x105, 1))  # one property is not the TPM's whole description
    assert layers.sent_for(COMMANDS) == ["GET_CAPABILITY"]


class _Tpm:
    """What was kept for ``tcti`` of a TPM that describes itself by ``properties``."""

    def __init__(self, folder: Path, properties: dict[int, int], tcti: str = "device:/dev/tpm0", more: int = 0) -> None:
        self.answers = Answers(str(folder), tcti)
        numbers = (6, len(properties), *(number for pair in properties.items() for number in pair))
        listed = bytes([more]) + b"".join(number.to_bytes(4, "big") for number in numbers)
        self.answers.learn(PROPERTIES, success(listed))

    def knows(self) -> bool:
        """Whether the algorithms are known; they are learned, then."""
        known = self.answers.answer(ALGORITHMS) is not None
        self.answers.learn(ALGORITHMS, success(bytes.fromhex("00 00000000 00000001 000b 00000000")))
        return known


def test_another_tpm_firmware_or_place_has_a_file_of_its_own(folder: Path) -> None:
    firmware = {0x100: 1, 0x10B: 7}
    assert not _Tpm(folder, firmware).knows()
    assert _Tpm(folder, firmware).knows()
    assert not _Tpm(folder, firmware | {0x10B: 8}).knows()
    assert not _Tpm(folder, firmware, "device:/dev/tpm1").knows()
    assert not _Tpm(folder, firmware, more=1).knows()  # an incomplete description
    assert not _Tpm(folder, firmware | {0x200: 0}).knows()  # one that can change
    assert _Tpm(folder, firmware).knows()


def test_a_change_of_the_firmware_makes_all_answers_void(folder: Path) -> None:
    tpm = _Tpm(folder, {0x100: 1})
    tpm.knows()
    assert tpm.answers.algorithms() == {0x000B}
    tpm.answers.learn(simple_command(0x12F), success())  # TPM2_FieldUpgradeStart
    assert tpm.answers.answer(ALGORITHMS) is None
    assert tpm.answers.answer(PROPERTIES) is None
    assert tpm.answers.algorithms() == frozenset()


def test_a_file_is_believed_for_a_day(folder: Path) -> None:
    path = str(folder / "answers-x")
    AnswerFile(path).put(b"key", b"value")
    changed = (folder / "answers-x").stat().st_mtime
    assert AnswerFile(path, now=lambda: changed + LIFETIME - 1).pairs == {b"key": b"value"}
    assert AnswerFile(path, now=lambda: changed + LIFETIME + 1).pairs == {}
    assert AnswerFile(path, now=lambda: changed - 1).pairs == {}  # the clock was set back


def test_pairs_are_added_replaced_and_dropped(folder: Path) -> None:
    path = str(folder / "answers-x")
    file = AnswerFile(path)
    file.put(b"a", b"1")
    file.put(b"b", b"")
    file.put(b"a", b"2")
    file.drop(b"c")
    assert AnswerFile(path).pairs == {b"a": b"2", b"b": b""}
    file.drop(b"a")
    assert AnswerFile(path).pairs == {b"b": b""}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.binary(max_size=3))
@example(0, b"")
@example(200, b"x")
def test_a_damaged_file_is_as_good_as_none(folder: Path, at: int, instead: bytes) -> None:
    path = folder / "answers-x"
    AnswerFile(str(path)).put(b"key" * 20, b"value" * 10)
    content = path.read_bytes()
    path.write_bytes(content[:at] + instead)
    expected = {b"key" * 20: b"value" * 10} if content[:at] + instead == content else {}
    assert AnswerFile(str(path)).pairs == expected


def test_a_file_with_right_digest_and_wrong_content_is_as_good_as_none(folder: Path) -> None:
    path = folder / "answers-x"
    body = b"\0\x05abc"
    path.write_bytes(b"tpm-mtls relay, answers of a TPM, 1\n" + digest_of("sha256", body) + body)
    assert AnswerFile(str(path)).pairs == {}


def test_what_is_too_large_is_not_written(folder: Path) -> None:
    path = folder / "answers-x"
    file = AnswerFile(str(path))
    for number in range(40):
        file.put(bytes([number]), bytes(2000))
    assert path.stat().st_size < 65536
    assert len(AnswerFile(str(path)).pairs) == 32
    assert len(file.pairs) == 40


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    file = AnswerFile(str(tmp_path / "absent" / "answers-x"))
    file.put(b"a", b"1")
    assert file.pairs == {b"a": b"1"}
    (tmp_path / "answers-folder").mkdir()
    assert AnswerFile(str(tmp_path / "answers-folder")).pairs == {}


def test_a_symbolic_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "somebody's"
    AnswerFile(str(target)).put(b"a", b"1")
    (folder / "answers-x").symlink_to(target)
    file = AnswerFile(str(folder / "answers-x"))
    assert file.pairs == {}
    file.put(b"b", b"2")
    assert not (folder / "answers-x").is_symlink()
    assert AnswerFile(str(target)).pairs == {b"a": b"1"}


def test_no_more_tpms_are_remembered_than_a_developer_has(folder: Path) -> None:
    (folder / "something else").touch()
    for number in range(FILES + 3):
        _Tpm(folder, {0x100: number}).knows()
    assert len(list(folder.iterdir())) == FILES + 1
    assert _Tpm(folder, {0x100: FILES + 2}).knows()
    gone = _Tpm(folder / "absent", {0x100: 1})
    assert not gone.knows()


def test_memory_is_bounded(folder: Path) -> None:
    tpm = _Tpm(folder, {0x100: 1})
    for number in range(2 * MEMORY_LIMIT):
        tpm.answers.learn(get_capability(0, number, 1), success(bytes(9)))
    assert tpm.answers.answer(get_capability(0, 0, 1)) is not None
    assert len(tpm.answers._memory) == MEMORY_LIMIT


@given(st.binary(max_size=40))
def test_whatever_a_tpm_answers_nothing_is_raised(rest: bytes) -> None:
    answers = Answers()
    for command in (*FIXED, simple_command(commands.GET_CAPABILITY), hash_command(b"")):
        answers.learn(command, success(rest))
        answers.answer(command)
    answers.algorithms()


def test_the_runtime_folder_is_the_first_that_can_be(tmp_path: Path) -> None:
    for name in ("service", "user", "system"):
        (tmp_path / name).mkdir()
    variables = {"RUNTIME_DIRECTORY": str(tmp_path / "service"), "XDG_RUNTIME_DIR": str(tmp_path / "user")}
    assert runtime_folder(variables) == str(tmp_path / "service" / "tpm-mtls-relay")
    assert (tmp_path / "service" / "tpm-mtls-relay").stat().st_mode & 0o777 == 0o700
    assert runtime_folder(variables) == str(tmp_path / "service" / "tpm-mtls-relay")
    del variables["RUNTIME_DIRECTORY"]
    assert runtime_folder(variables) == str(tmp_path / "user" / "tpm-mtls-relay")
    variables["XDG_RUNTIME_DIR"] = "relative"
    system = runtime_folder(variables, system=str(tmp_path / "system"))
    assert system == (str(tmp_path / "system" / "tpm-mtls-relay") if os.geteuid() == 0 else None)


def test_a_runtime_folder_that_others_can_use_is_none(tmp_path: Path) -> None:
    (tmp_path / "tpm-mtls-relay").mkdir()
    (tmp_path / "tpm-mtls-relay").chmod(0o750)
    variables = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert runtime_folder(variables, system="/absent") is None
    (tmp_path / "tpm-mtls-relay").rmdir()
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "tpm-mtls-relay").symlink_to(tmp_path / "private")
    assert runtime_folder(variables, system="/absent") is None
    (tmp_path / "tpm-mtls-relay").unlink()
    (tmp_path / "tpm-mtls-relay").touch()
    assert runtime_folder(variables, system="/absent") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_runtime_folder_of_somebody_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "tpm-mtls-relay").mkdir(mode=0o700)
    os.chown(tmp_path / "tpm-mtls-relay", 65534, 65534)
    assert runtime_folder({"XDG_RUNTIME_DIR": str(tmp_path)}, system="/absent") is None
