"""A relay that is killed leaves nothing in a TPM without resource manager: the next one removes it, and only it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.relay import RelayProcess, relay_layers, relay_process
from support.tpm_commands import NULL, OWNER, flush, handle_in, load, sized, start_sequence, with_password
from support.tpm_keys import make_key
from tpm_mtls_relay import layers
from tpm_mtls_relay.connection.opening import open_transport
from tpm_mtls_relay.loaded.ledger import OBJECT, SEQUENCE, SESSION, Ledger, Record, files, lock, prefix, records
from tpm_mtls_relay.loaded.leftovers import flush_leftovers
from tpm_mtls_relay.loaded.loading import expected
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import code_of, simple_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm import SimulatedTpm

POLICY_SESSION = simple_command(
    commands.START_AUTH_SESSION, sized(bytes(16)) + sized(b"") + bytes.fromhex("01 0010 000b"), handles=(NULL, NULL)
)
ECC_TEMPLATE = bytes.fromhex("0023000b00040072000000100018000b0003001000000000")
PRIMARY = with_password(
    commands.CREATE_PRIMARY,
    bytes.fromhex("0004 0000 0000") + sized(ECC_TEMPLATE) + sized(b"") + bytes(4),
    handles=(OWNER,),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's runtime folder."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "tpm-mtls-relay"


@pytest.fixture
def ledger(folder: Path, tpm: SimulatedTpm) -> Iterator[Ledger]:
    """A living relay's, with ``folder`` made."""
    folder.mkdir(mode=0o700)
    ledger = Ledger(str(folder), tpm.tcti)
    yield ledger
    die(ledger)


def die(ledger: Ledger) -> None:
    """What happens to a killed relay's lock."""
    if ledger._descriptor >= 0:
        os.close(ledger._descriptor)
        ledger._descriptor = -1


def clean(folder: Path, tpm: SimulatedTpm) -> None:
    flush_leftovers(str(folder), tpm.tcti, open_transport(tpm.tcti))


def test_the_next_relay_flushes_what_a_killed_one_left(tpm: SimulatedTpm, tmp_path: Path, folder: Path) -> None:
    key = make_key(tpm, tmp_path)
    assert key
    killed = RelayProcess(tpm.tcti)
    handle_in(killed(load(tmp_path, "ecc-p256-0")))
    handle_in(killed(PRIMARY))
    handle_in(killed(POLICY_SESSION))
    killed.process.kill()
    killed.wait()
    assert len(tpm.handles("transient")) == 2
    assert len(tpm.handles("loaded-session")) == 1
    with relay_process(tpm) as relay:
        assert code_of(relay(simple_command(commands.GET_RANDOM, b"\0\x08"))) == 0
        assert tpm.handles("transient") == []
        assert tpm.handles("loaded-session") == []
    assert files(str(folder), tpm.tcti) == []


def test_a_relay_that_ends_leaves_no_file_and_needs_none_without_objects(tpm: SimulatedTpm, folder: Path) -> None:
    with relay_layers(tpm) as layers:
        layers(simple_command(commands.GET_RANDOM, b"\0\x08"))
        assert files(str(folder), tpm.tcti) == []
        handle_in(layers(PRIMARY))
        (path,) = files(str(folder), tpm.tcti)
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert files(str(folder), tpm.tcti) == []


def test_what_a_living_relay_has_is_left_alone(tpm: SimulatedTpm, folder: Path) -> None:
    with relay_layers(tpm) as living:
        handle_in(living(PRIMARY))
        handle_in(living(POLICY_SESSION))
        with relay_layers(tpm):
            pass
        clean(folder, tpm)
        assert len(tpm.handles("transient")) == 1
        assert len(tpm.handles("loaded-session")) == 1


def test_another_object_at_the_same_handle_is_left_alone(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    ledger.expect(Record(OBJECT, 0, ECC_TEMPLATE[:-8] + bytes(8)))
    ledger.loaded(0x80000000)
    die(ledger)
    direct = open_transport(tpm.tcti)
    handle = handle_in(direct(PRIMARY))
    assert handle == 0x80000000
    clean(folder, tpm)
    assert tpm.handles("transient") == ["0x80000000"]
    assert files(str(folder), tpm.tcti) == []
    direct(flush(handle))


@pytest.mark.parametrize("command", [PRIMARY, POLICY_SESSION], ids=["object", "session"])
def test_a_relay_that_is_killed_before_it_knows_the_handle_leaves_nothing(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger, command: bytes
) -> None:
    ledger.expect(expected(command))
    handle_in(open_transport(tpm.tcti)(command))
    die(ledger)
    clean(folder, tpm)
    assert files(str(folder), tpm.tcti) == []


def test_a_key_that_was_being_loaded_is_found_by_its_public_area(
    tpm: SimulatedTpm, tmp_path: Path, folder: Path, ledger: Ledger
) -> None:
    make_key(tpm, tmp_path)
    make_key(tpm, tmp_path)
    direct = open_transport(tpm.tcti)
    other = handle_in(direct(load(tmp_path, "ecc-p256-0")))
    ledger.expect(expected(load(tmp_path, "ecc-p256-1")))
    handle_in(direct(load(tmp_path, "ecc-p256-1")))
    die(ledger)
    clean(folder, tpm)
    assert tpm.handles("transient") == [f"{other:#x}"]
    direct(flush(other))


def test_a_session_that_is_in_use_is_not_taken_for_a_fresh_one(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    direct = open_transport(tpm.tcti)
    used = handle_in(direct(POLICY_SESSION))
    assert code_of(direct(simple_command(commands.POLICY_AUTH_VALUE, handles=(used,)))) == 0
    hmac = handle_in(direct(POLICY_SESSION.replace(bytes.fromhex("010010000b"), bytes.fromhex("000010000b"))))
    ledger.expect(Record(SESSION))
    die(ledger)
    clean(folder, tpm)
    assert sorted(tpm.handles("loaded-session")) == sorted([f"{used:#x}", f"{hmac:#x}"])
    for handle in (used, hmac):
        direct(flush(handle))


def test_while_a_living_relay_is_loading_what_is_not_known_waits(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger
) -> None:
    living = Ledger(str(folder), tpm.tcti)
    living.expect(expected(PRIMARY))
    ledger.expect(expected(PRIMARY))
    handle_in(open_transport(tpm.tcti)(PRIMARY))
    die(ledger)
    clean(folder, tpm)
    assert len(tpm.handles("transient")) == 1
    assert len(files(str(folder), tpm.tcti)) == 2
    living.refused()
    clean(folder, tpm)
    assert tpm.handles("transient") == []
    living.close()
    assert files(str(folder), tpm.tcti) == []


def test_a_sequence_is_told_by_having_no_public_area(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    direct = open_transport(tpm.tcti)
    sequence, primary = handle_in(direct(start_sequence())), handle_in(direct(PRIMARY))
    for handle in (sequence, primary):
        ledger.expect(Record(SEQUENCE))
        ledger.loaded(handle)
    ledger.expect(Record(SEQUENCE))
    die(ledger)
    clean(folder, tpm)
    assert tpm.handles("transient") == [f"{primary:#x}"]
    direct(flush(primary))


def test_a_tpm_that_is_away_keeps_its_file(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    ledger.expect(Record(OBJECT, 0, ECC_TEMPLATE))
    ledger.loaded(0x80000000)
    die(ledger)
    tpm.stop()
    layers.flush_leftovers(Ledger(str(folder), tpm.tcti), open_transport(tpm.tcti))
    assert len(files(str(folder), tpm.tcti)) == 1


def test_what_a_command_without_answer_has_loaded_is_for_the_next_relay(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger
) -> None:
    ledger.expect(expected(PRIMARY))
    handle_in(open_transport(tpm.tcti)(PRIMARY))
    ledger.close()
    assert len(files(str(folder), tpm.tcti)) == 1
    clean(folder, tpm)
    assert tpm.handles("transient") == []


def test_records_are_kept_apart_and_their_places_used_again(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    for handle in (1, 2, 3):
        ledger.expect(Record(OBJECT, 0, bytes([handle])))
        ledger.loaded(handle)
    ledger.gone(2)
    ledger.gone(9)
    ledger.expect(Record(OBJECT, 0, b"refused"))
    ledger.refused()
    ledger.expect(Record(SESSION))
    ledger.loaded(4)
    ledger.loaded(5)  # nothing was expected
    (path,) = files(str(folder), tpm.tcti)
    descriptor = os.open(path, os.O_RDONLY)
    found = [(record.kind, record.handle, record.public) for record in records(descriptor)]
    assert found == [(OBJECT, 1, b"\1"), (SESSION, 4, b""), (OBJECT, 3, b"\3")]
    assert not lock(descriptor)
    os.close(descriptor)


def test_a_file_that_is_taken_for_a_dead_relays_before_it_is_locked_is_made_anew(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(descriptor: int) -> bool:
        monkeypatch.undo()
        Path(files(str(folder), tpm.tcti)[0]).unlink()
        return lock(descriptor)

    monkeypatch.setattr("tpm_mtls_relay.loaded.ledger.lock", lost)
    ledger.expect(Record(SESSION))
    assert len(files(str(folder), tpm.tcti)) == 1


def test_more_than_a_tpm_holds_and_larger_than_any_key_is_not_written(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger
) -> None:
    ledger.expect(Record(OBJECT, 0, bytes(2000)))
    ledger.loaded(7)
    for handle in range(100, 200):
        ledger.expect(Record(SESSION))
        ledger.loaded(handle)
    (path,) = files(str(folder), tpm.tcti)
    assert Path(path).stat().st_size == 64 * 1024
    for handle in (7, *range(100, 200)):
        ledger.gone(handle)
    ledger.close()
    assert files(str(folder), tpm.tcti) == []


def test_a_folder_that_vanished_stops_no_command(tpm: SimulatedTpm, folder: Path) -> None:
    with relay_layers(tpm) as layers:
        shutil.rmtree(folder)
        handle = handle_in(layers(PRIMARY))
        assert code_of(layers(flush(handle))) == 0


def test_a_full_disk_stops_no_command(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with relay_layers(tpm) as layers:
        handle = handle_in(layers(PRIMARY))
        monkeypatch.setattr(os, "pwrite", full)
        assert code_of(layers(flush(handle))) == 0
        assert handle_in(layers(PRIMARY)) == handle


def test_files_are_told_apart_by_their_tpm() -> None:
    assert prefix("swtpm:host=127.0.0.1,port=2321") == "swtpm%3a.host%3d.127%2e.0%2e.0%2e.1%2c.port%3d.2321@"
    assert prefix("device:/dev/tpm0") == "device%3a.%2f.dev%2f.tpm0@"
    assert not prefix("swtpm:port=23210").startswith(prefix("swtpm:port=2321"))


class Refusing:
    """A TPM that refuses everything."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, command: bytes) -> bytes:
        self.asked.append(code_of(command))
        return simple_command(0x101)


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        (Record(OBJECT, 0x80000000, b"\0"), [commands.READ_PUBLIC]),
        (Record(OBJECT, 0x80000000), [commands.READ_PUBLIC]),
        (Record(OBJECT), [commands.GET_CAPABILITY]),
        (Record(SESSION), [commands.GET_CAPABILITY]),
        (Record(SEQUENCE), []),
    ],
)
def test_a_tpm_that_refuses_to_say_what_it_has_is_left_alone(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger, record: Record, asked: list[int]
) -> None:
    ledger.expect(record)
    die(ledger)
    refusing = Refusing()
    flush_leftovers(str(folder), tpm.tcti, refusing)
    assert refusing.asked == asked
    assert files(str(folder), tpm.tcti) == []


def test_a_capability_that_is_cut_off_lists_nothing(tpm: SimulatedTpm, folder: Path, ledger: Ledger) -> None:
    ledger.expect(Record(SESSION))
    die(ledger)
    flush_leftovers(str(folder), tpm.tcti, lambda _: simple_command(0, bytes(5) + (9).to_bytes(4, "big")))
    assert files(str(folder), tpm.tcti) == []


def test_a_file_whose_relay_ends_meanwhile_is_no_error(
    tpm: SimulatedTpm, folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.expect(Record(SESSION))
    gone = [*files(str(folder), tpm.tcti), f"{folder}/gone.ledger"]
    monkeypatch.setattr("tpm_mtls_relay.loaded.leftovers.files", lambda *_: gone)
    clean(folder, tpm)
    assert len(files(str(folder), tpm.tcti)) == 1


def test_damaged_files_are_read_as_far_as_they_make_sense(folder: Path, tpm: SimulatedTpm) -> None:
    folder.mkdir(mode=0o700)
    path = folder / f"{prefix(tpm.tcti)}1-1.ledger"
    path.write_bytes(b"\xff" * 3000 + b"\1")
    clean(folder, tpm)
    assert not path.exists()
