"""NV memory: what is there, reading it as its attributes allow, writing our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    HandleNotFoundError,
    HandleOccupiedError,
    TpmRefusedError,
)
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

INDEX = 0x01500000


def test_what_was_written_is_read_back_and_by_tpm2_tools_too(tpm: SimulatedTpm, tmp_path: Path) -> None:
    content = bytes(range(256)) * 7
    with open_tpm(tpm.tcti) as opened:
        opened.nv.define(INDEX, len(content))
        assert opened.nv.indices() == (INDEX,)
        about = opened.nv.describe(INDEX)
        assert (about.size, about.written, about.ours) == (len(content), False, True)
        opened.nv.write(INDEX, content)
        assert opened.nv.describe(INDEX).written
        assert opened.nv.read(INDEX, limit=10_000) == content
        assert opened.nv.read(INDEX, limit=1000) == content[:1000]

    tpm.tool("tpm2_nvread", f"{INDEX:#x}", "-o", "nv", cwd=tmp_path)
    assert (tmp_path / "nv").read_bytes() == content


def test_pieces_are_small(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        opened.nv.define(INDEX, 1537)
        opened.nv.write(INDEX, bytes(1537))
        opened.nv.read(INDEX, limit=1537)

    assert trace.commands() == [
        *("NV_DefineSpace", "NV_ReadPublic", "NV_Write", "NV_Write", "NV_Write"),
        *("NV_ReadPublic", "NV_Read", "NV_Read", "NV_Read"),
    ]


def test_an_index_that_is_there_is_not_made_again(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.nv.define(INDEX, 10)
        with pytest.raises(HandleOccupiedError, match="the NV index 0x01500000 is occupied") as refusal:
            opened.nv.define(INDEX, 10)

    assert refusal.value.handle == INDEX


def test_an_index_that_is_not_there_is_told(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        for attempt in (
            lambda: opened.nv.describe(INDEX),
            lambda: opened.nv.read(INDEX, limit=10),
            lambda: opened.nv.write(INDEX, b"x"),
            lambda: opened.nv.remove(INDEX),
        ):
            with pytest.raises(HandleNotFoundError):
                attempt()


def test_what_was_never_written_cannot_be_read(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.nv.define(INDEX, 10)
        with pytest.raises(TpmRefusedError, match="cannot read NV 0x01500000"):
            opened.nv.read(INDEX, limit=10)
        opened.nv.remove(INDEX)
        assert opened.nv.indices() == ()


@pytest.mark.parametrize(
    ("attributes", "readable"),
    [("ownerwrite|ownerread", True), ("ownerwrite|authread", True), ("ownerwrite|policyread", False)],
)
def test_an_index_is_read_as_its_attributes_allow(
    tpm: SimulatedTpm, tmp_path: Path, attributes: str, *, readable: bool
) -> None:
    (tmp_path / "content").write_bytes(b"hello")
    tpm.tool("tpm2_nvdefine", f"{INDEX:#x}", "-C", "o", "-s", "5", "-a", attributes)
    tpm.tool("tpm2_nvwrite", f"{INDEX:#x}", "-C", "o", "-i", "content", cwd=tmp_path)

    with open_tpm(tpm.tcti) as opened:
        assert not opened.nv.describe(INDEX).ours
        if readable:
            assert opened.nv.read(INDEX, limit=5) == b"hello"
            return
        with pytest.raises(TpmRefusedError, match="its attributes allow neither") as refusal:
            opened.nv.read(INDEX, limit=5)
        assert refusal.value.rc == 0x149


def test_the_owner_s_password_is_needed_to_change_and_not_to_read(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_changeauth", "-c", "o", "secret")
    with open_tpm(tpm.tcti) as opened, pytest.raises(AuthorizationError) as refusal:
        opened.nv.define(INDEX, 5)
    assert "--owner-auth" in refusal.value.hint

    with open_tpm(tpm.tcti, owner_authorization=Secret(b"secret")) as opened:
        opened.nv.define(INDEX, 5)
        opened.nv.write(INDEX, b"hello")
    with open_tpm(tpm.tcti) as opened:
        assert opened.nv.read(INDEX, limit=5) == b"hello"


def test_the_largest_index_is_what_the_tpm_says(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        largest = opened.nv.largest()
        opened.nv.define(INDEX, largest)
        with pytest.raises(TpmRefusedError):
            opened.nv.define(INDEX + 1, largest + 1)
    assert f"TPM2_PT_NV_INDEX_MAX:\n  raw: 0x{largest:X}" in tpm.tool("tpm2_getcap", "properties-fixed").stdout


def test_many_indices_are_all_listed(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        wanted = tuple(range(INDEX, INDEX + 140))
        for index in wanted:
            opened.nv.define(index, 8)
        assert opened.nv.indices() == wanted
        assert opened.nv.indices(INDEX + 100) == wanted[100:]
