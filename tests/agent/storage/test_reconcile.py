"""What a killed process left: what of it counts, by the table, the TPM's list and the folder's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tpm_mtls_agent.storage.envelope import file_name
from tpm_mtls_agent.storage.reconcile import reconcile, strays
from tpm_mtls_agent.storage.slots import Shape
from tpm_mtls_agent.storage.table import Entry, Table

NAME, OTHER = "ab" * 32, "cd" * 32
SMALL = Entry(name=NAME, slot=1, form="nv", generation=4, size=64, places=(0,))
LARGE = Entry(name=NAME, slot=1, form="nv", generation=4, size=64, places=(4,))
SEALED = Entry(name=OTHER, slot=2, form="file", generation=5)
FILE, OLDER, SEALED_FILE = file_name(NAME, 4), file_name(NAME, 3), file_name(OTHER, 5)


def test_after_an_orderly_end_there_is_nothing_to_do() -> None:
    table = Table(entries=(LARGE, SEALED))
    found = reconcile(table, {1}, {FILE, SEALED_FILE})

    assert found.table == table
    assert (found.orphans, found.unclear) == ((), ())
    assert frozenset() == found.lost == found.foreign == found.suspicious


def test_an_index_that_nobody_needs_is_removed() -> None:
    found = reconcile(Table(entries=(SEALED,), orphans=(Shape(2, 64), Shape(3, 64))), {2, 3}, {SEALED_FILE})

    assert found.orphans == (Shape(2, 64), Shape(3, 64))
    assert not found.foreign


def test_one_that_was_never_made_or_is_gone_costs_no_command() -> None:
    found = reconcile(Table(orphans=(Shape(3, 64),)), set(), set())

    assert found.orphans == ()
    assert found.table == Table()


def test_a_deletion_that_came_as_far_as_the_tpm_is_finished() -> None:
    found = reconcile(Table(entries=(replace(LARGE, deleting=True),)), set(), {FILE})

    assert found.table.entries == ()
    assert not found.lost
    assert strays(found.table, {FILE}) == {FILE}


def test_one_that_did_not_leaves_the_secret() -> None:
    found = reconcile(Table(entries=(replace(LARGE, deleting=True),)), {1}, {FILE})

    assert found.table.entries == (LARGE,)
    assert strays(found.table, {FILE}) == frozenset()


@pytest.mark.parametrize(
    ("places", "files", "unclear"),
    [
        pytest.param((3, 4), {OLDER, FILE}, True, id="both files"),
        pytest.param((3, 4), {FILE}, False, id="the old one is removed: the new one counts"),
        pytest.param((3, 4), {OLDER}, False, id="the new one was never written, or given up: the old one counts"),
        pytest.param((0, 4), {FILE}, True, id="a value in NV grew, or not yet"),
        pytest.param((0, 4), set(), False, id="it did not"),
        pytest.param((0, 3), {OLDER}, True, id="a value in a file shrank, or not yet"),
        pytest.param((0, 3), set(), False, id="it did"),
        pytest.param((0,), set(), False, id="in NV before and after"),
        pytest.param((3, 4), set(), True, id="somebody removed both: the error will say so"),
    ],
)
def test_the_tpm_is_asked_only_where_the_files_do_not_tell(
    places: tuple[int, ...], files: set[str], *, unclear: bool
) -> None:
    found = reconcile(Table(entries=(replace(LARGE, places=places),)), {1}, files)

    assert bool(found.unclear) == unclear


def test_an_unclear_one_whose_index_is_gone_is_lost() -> None:
    found = reconcile(Table(entries=(replace(LARGE, places=(3, 4)),)), set(), {OLDER, FILE})

    assert found.lost == {1}
    assert not found.unclear


def test_an_index_that_the_table_does_not_know_is_left_alone() -> None:
    found = reconcile(Table(entries=(SMALL, SEALED)), {1, 2, 9}, {SEALED_FILE})

    assert found.foreign == {2, 9}
    assert found.orphans == ()
    assert found.suspicious == {2}, "the secret in a file may have a newer value there"


def test_files_that_no_secret_has_are_strays() -> None:
    other = file_name("ef" * 32, 1)
    unfinished = {f".{FILE}.0123abcd.tmp", ".table.json.0123abcd.tmp", ".keys.json.0123abcd.tmp"}

    assert strays(Table(entries=(LARGE, SEALED)), {FILE, OLDER, SEALED_FILE, other, *unfinished}) == {
        OLDER,
        other,
        *unfinished,
    }


def test_other_peoples_files_stay() -> None:
    files = {"table.json", "keys.json", "README", ".table.json.swp", "x.1.sealed", f"{FILE}.bak", ".x.0123abcd.tmp"}

    assert strays(Table(), files) == frozenset()
