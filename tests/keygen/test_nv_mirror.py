"""The copy of the identity in the TPM's NV memory: found again, never over somebody else's, and never half."""

from __future__ import annotations

import secrets
import zlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.power_cut import TpmTap
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import HandleOccupiedError, TpmMemoryError
from tpm_mtls.identity import IdentityRecord
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import Tpm, open_tpm
from tpm_mtls.tpm.nv import PIECE
from tpm_mtls_keygen.attestation_key import make_attestation_key
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.keys import FileForm, create_key
from tpm_mtls_keygen.nv_mirror import FIRST_INDEX, Mirror, find_place, remove_mirror, store_mirror

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

OURS = "ownerwrite|ownerread|authread|no_da"


def record(key: str = "handle:0x81000100", device: str = "sensor-17") -> IdentityRecord:
    return IdentityRecord(
        device=device,
        key=key,
        algorithm="ecc-p256",
        key_name="k1",
        srk_name="s1",
        tpm_vendor="IBM",
        tpm_firmware="1.2.3.4",
        reset_count=1,
        ca_url="https://ca.example:443",
        enrolled_by="tpm",
    )


def mirror(folder: Path, *, size: int = 900, device: str = "sensor-17") -> Mirror:
    """One whose certificates cannot be compressed."""
    return Mirror(
        folder=str(folder),
        record=record(device=device),
        key=None,
        attestation_key=None,
        certificates=(secrets.token_bytes(size),),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_an_empty_tpm_has_a_place_and_no_mirror(tpm: SimulatedTpm, folder: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        place = find_place(opened, folder)

    assert (place.first, place.mirror) == (FIRST_INDEX, None)


@pytest.mark.parametrize("size", [10, 900, 1500, 5000, 12000])
def test_what_was_stored_is_found_again_however_many_indices_it_takes(
    tpm: SimulatedTpm, folder: Path, size: int
) -> None:
    stored = mirror(folder, size=size)
    with open_tpm(tpm.tcti) as opened:
        assert store_mirror(opened, find_place(opened, folder), stored)
        assert find_place(opened, folder).mirror == stored
        assert len(tpm.handles("nv-index")) == size // 2000 + 1


def test_a_whole_identity_with_keys_is_found_again(tpm: SimulatedTpm, folder: Path, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        create_key(opened, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "key.pem"))
        stored = Mirror(
            folder=str(folder),
            record=record("device.key.pem"),
            key=(tmp_path / "key.pem").read_bytes(),
            attestation_key=make_attestation_key(opened, read_endorsement(opened)),
            certificates=(b"leaf", b"issuer"),
        )
        store_mirror(opened, find_place(opened, folder), stored)
        assert find_place(opened, folder).mirror == stored


def test_it_is_written_once_per_change_in_small_pieces(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    stored = mirror(folder, size=1500)
    with open_tpm(trace.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), stored)
    assert trace.commands().count("NV_Write") == 3  # 1.7 KiB
    assert PIECE == 768
    trace.restart()

    with open_tpm(trace.tcti) as opened:
        assert not store_mirror(opened, find_place(opened, folder), stored)
    assert "NV_Write" not in trace.commands()


@pytest.mark.parametrize(("before", "after"), [(900, 930), (900, 3000), (3000, 900), (900, 1400)])
def test_a_change_takes_the_place_of_what_was_there(tpm: SimulatedTpm, folder: Path, before: int, after: int) -> None:
    changed = mirror(folder, size=after)
    with open_tpm(tpm.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), mirror(folder, size=before))
        store_mirror(opened, find_place(opened, folder), changed)
        assert find_place(opened, folder).mirror == changed
        assert len(tpm.handles("nv-index")) == after // 2000 + 1


def test_each_folder_has_its_own(tpm: SimulatedTpm, folder: Path, tmp_path: Path) -> None:
    one, two = mirror(folder, size=3000), mirror(tmp_path / "two", device="sensor-18")
    with open_tpm(tpm.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), one)
        store_mirror(opened, find_place(opened, tmp_path / "two"), two)
        assert find_place(opened, folder).mirror == one
        place = find_place(opened, tmp_path / "two")
        assert (place.mirror, place.others, place.first) == (two, ("sensor-17",), FIRST_INDEX + 8)
        assert find_place(opened, tmp_path / "three").others == ("sensor-17", "sensor-18")

        remove_mirror(opened, find_place(opened, folder))
        assert find_place(opened, folder).mirror is None
        assert find_place(opened, tmp_path / "two").mirror == two


@pytest.mark.parametrize("attributes", [OURS, "ownerwrite|ownerread|authread", "ownerwrite|policyread"])
def test_somebody_else_s_index_is_refused_and_stays(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, attributes: str
) -> None:
    (tmp_path / "content").write_bytes(b"x" * 100)
    tpm.tool("tpm2_nvdefine", "0x01500000", "-C", "o", "-s", "100", "-a", attributes)
    tpm.tool("tpm2_nvwrite", "0x01500000", "-C", "o", "-i", str(tmp_path / "content"))

    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleOccupiedError, match="occupied by something else") as it:
        find_place(opened, folder)

    assert it.value.handle == FIRST_INDEX
    assert "--no-mirror" in it.value.hint


def test_somebody_else_s_index_behind_a_free_place_does_not_matter(tpm: SimulatedTpm, folder: Path) -> None:
    tpm.tool("tpm2_nvdefine", "0x01500009", "-C", "o", "-s", "100", "-a", "ownerwrite|ownerread")

    with open_tpm(tpm.tcti) as opened:
        assert find_place(opened, folder).first == FIRST_INDEX


def test_what_a_killed_run_defined_but_never_wrote_is_used(tpm: SimulatedTpm, folder: Path) -> None:
    stored = mirror(folder)
    with open_tpm(tpm.tcti) as opened:
        opened.nv.define(FIRST_INDEX, 64)
        place = find_place(opened, folder)
        assert (place.mirror, place.indices) == (None, (FIRST_INDEX,))
        store_mirror(opened, place, stored)
        assert find_place(opened, folder).mirror == stored


@pytest.mark.parametrize("before", [None, 2500])
@pytest.mark.parametrize("pieces", range(1, 5))
def test_cut_off_while_writing_there_is_no_mirror_and_the_next_run_makes_one(
    tpm: SimulatedTpm, folder: Path, before: int | None, pieces: int
) -> None:
    """Old and new pieces together are neither."""

    class Cut(Exception):  # noqa: N818 - the test's way of pulling the plug
        pass

    stored = mirror(folder, size=2500)
    with open_tpm(tpm.tcti) as opened:
        if before:
            store_mirror(opened, find_place(opened, folder), mirror(folder, size=before))
        place = find_place(opened, folder)
        with pytest.raises(Cut), TornWrites(opened, pieces, Cut):
            store_mirror(opened, place, stored)
        torn = find_place(opened, folder)
        assert torn.mirror is None
        store_mirror(opened, torn, stored)
        assert find_place(opened, folder).mirror == stored


class TornWrites:
    """Lets so many pieces reach the NV memory, and no more."""

    def __init__(self, tpm: Tpm, pieces: int, error: type[Exception]) -> None:
        self._nv, self._left, self._error = tpm.nv, pieces, error

    def __enter__(self) -> None:
        whole = type(self._nv).write

        def write(index: int, data: bytes) -> None:
            fits = self._left * PIECE
            self._left -= -(-len(data) // PIECE)
            whole(self._nv, index, data[:fits])
            if self._left < 0 or len(data) > fits:
                raise self._error

        self._nv.write = write  # type: ignore[method-assign]  # the plug that is pulled

    def __exit__(self, *_: object) -> None:
        del self._nv.write  # type: ignore[method-assign]  # the class has it still


def test_what_fits_in_no_way_is_told(tpm: SimulatedTpm, folder: Path) -> None:
    with open_tpm(tpm.tcti) as opened, pytest.raises(TpmMemoryError, match="does not fit") as refusal:
        store_mirror(opened, find_place(opened, folder), mirror(folder, size=20_000))

    assert "--no-mirror" in refusal.value.hint
    assert tpm.handles("nv-index") == []


def test_a_full_nv_memory_is_told(tpm: SimulatedTpm, folder: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        for index in range(0x01800000, 0x01800100):
            try:
                opened.nv.define(index, 2048)
            except TpmMemoryError:
                break
        with pytest.raises(TpmMemoryError, match="NV memory is full"):
            store_mirror(opened, find_place(opened, folder), mirror(folder, size=12_000))


def write_raw(tpm: Tpm, packed: bytes) -> None:
    """A mirror whose digest is right, whatever is in it."""
    import hashlib

    from tpm_mtls_keygen import nv_mirror

    header = nv_mirror._HEADER.pack(nv_mirror._MAGIC, 0, 1, len(packed), hashlib.sha256(packed).digest())
    tpm.nv.define(FIRST_INDEX, 2048)
    tpm.nv.write(FIRST_INDEX, header + packed)


@pytest.mark.parametrize(
    "change",
    [
        {"certificates": []},
        {"key": b"no key"},
        {"certificates": 7},
        {"else": 1},
        {"record": {"format": 1}},
        {"record": msgspec.to_builtins(record("../../etc/passwd"))},
        {"record": msgspec.to_builtins(record("device.key.pem"))},  # and no key file
        {"record": msgspec.to_builtins(record("handle:0"))},
        {"record": msgspec.to_builtins(record()) | {"format": 2}},
        {"attestation_key": {"format": 1, "public": b"x", "private": b"x", "ek_template": "L-1", "ek_public": b"x"}},
    ],
)
def test_what_the_owner_of_the_tpm_wrote_there_is_not_believed(
    tpm: SimulatedTpm, folder: Path, change: dict[str, object]
) -> None:
    content = msgspec.to_builtins(mirror(folder), builtin_types=(bytes,)) | change
    with open_tpm(tpm.tcti) as opened:
        write_raw(opened, zlib.compress(msgspec.msgpack.encode(content)))
        assert find_place(opened, folder).mirror is None


@pytest.mark.parametrize("packed", [b"no zlib", zlib.compress(b"\xc1"), zlib.compress(bytes(1_000_000), 9), b""])
def test_garbage_and_bombs_are_no_mirror(tpm: SimulatedTpm, folder: Path, packed: bytes) -> None:
    with open_tpm(tpm.tcti) as opened:
        write_raw(opened, packed)
        assert find_place(opened, folder).mirror is None


def test_removal_killed_halfway_leaves_no_mirror_and_goes_on(tpm: SimulatedTpm, folder: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), mirror(folder, size=3000))
        opened.nv.remove(FIRST_INDEX + 1)
        place = find_place(opened, folder)
        assert (place.mirror, place.indices) == (None, (FIRST_INDEX,))
        remove_mirror(opened, place)
    assert tpm.handles("nv-index") == []


def test_all_places_taken_is_told(
    tpm: SimulatedTpm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpm_mtls_keygen.nv_mirror.LAST_INDEX", FIRST_INDEX + 7)
    with open_tpm(tpm.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), mirror(folder))
        with pytest.raises(HandleOccupiedError, match="taken by other identities"):
            find_place(opened, tmp_path / "other")


def test_the_tap_names_the_commands(tpm: SimulatedTpm, folder: Path) -> None:
    with TpmTap(tpm.tcti) as tap, open_tpm(tap.tcti) as opened:
        store_mirror(opened, find_place(opened, folder), mirror(folder))
        remove_mirror(opened, find_place(opened, folder))
    assert "NV_UndefineSpace" in tap.commands
