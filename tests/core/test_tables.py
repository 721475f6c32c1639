"""Lists: a person can compare and copy all that is in them, and a program gets a line for each row."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tpm_mtls.tables import narrowed, plain, print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH = "0ecee337814c88b33418de2ea36d88d6aa2a14c16ee6975d88b7b26a3e2e8fc9"
TITLES = ("id", "ek_hash", "why")
ROWS = ((1, HASH, "no TPM maker is trusted, and it is not on the list"), (12, HASH[::-1], "-"))


class Terminal(io.StringIO):
    """A terminal's standard output."""

    def isatty(self) -> bool:
        return True


def shown(columns: int, titles: Sequence[str] = TITLES, rows: Sequence[Sequence[object]] = ROWS, **how: object) -> str:
    """What a person sees, without colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", Terminal())
        print_rows(titles, rows, **({"empty": "nobody"} | how))  # type: ignore[arg-type]  # as the tests choose
        said: str = sys.stdout.getvalue()  # type: ignore[attr-defined]  # it is the Terminal of above
    return re.sub(r"\x1b\[[0-9;]*m", "", said)


def test_a_wide_terminal_gets_a_table() -> None:
    title, rule, first, second = (line for line in shown(130).splitlines() if line.strip())
    assert title.split() == list(TITLES)
    assert set(rule.strip()) == {"─"}
    assert first.split(maxsplit=2)[:2] == ["1", HASH]
    assert first.rstrip().endswith("not on the list")
    assert second.split() == ["12", HASH[::-1], "-"]


def test_text_is_broken_between_words_to_make_room_for_hashes() -> None:
    lines = [line.rstrip() for line in shown(100, wrap=["why"]).splitlines() if line.strip()]
    assert HASH in lines[2]
    assert all(cell_len(line) <= 100 for line in lines)
    assert len(lines) == 5
    words = " ".join(line.replace(HASH, "").removeprefix("1") for line in lines[2:4])
    assert " ".join(words.removeprefix(" 1").split()) == ROWS[0][2]


@pytest.mark.parametrize("columns", [20, 80, 90])
def test_where_no_table_fits_each_row_is_a_block(columns: int) -> None:
    """A hash is whole on its line, so that it is whole when it is copied."""
    assert shown(columns, wrap=["why"]) == (
        f"id:      1\nek_hash: {HASH}\nwhy:     {ROWS[0][2]}\n\nid:      12\nek_hash: {HASH[::-1]}\nwhy:     -\n"
    )


def test_values_that_are_only_looked_at_are_folded() -> None:
    text = shown(60, rows=[(1, HASH, "x")], fold=["ek_hash"])
    assert HASH not in text
    assert "".join(re.findall(r"\b[0-9a-f]{10,}", text)) == HASH


def test_an_empty_list_says_so_to_a_person_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(80, rows=[]) == "nobody\n"
    print_rows(TITLES, [], empty="nobody")
    assert capsys.readouterr().out == ""


def test_a_program_gets_lines_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(TITLES, ROWS, empty="nobody")
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == [
        [str(value) for value in row] for row in ROWS
    ]


@pytest.mark.parametrize("columns", [8, 80])
def test_nothing_that_a_terminal_obeys_is_printed(columns: int) -> None:
    assert plain("a\x1b[2J\nb\u202ec") == "a?[2J?b?c"
    assert "a?[2J b" in shown(columns, ["name"], [["a\x1b[2J b"]])


@pytest.mark.parametrize(
    ("natural", "least", "room", "widths"),
    [
        ([2, 64, 50], [2, 64, 20], 116, [2, 64, 50]),
        ([2, 64, 50], [2, 64, 20], 115, [2, 64, 49]),
        ([2, 64, 50], [2, 64, 20], 86, [2, 64, 20]),
        ([2, 64, 50], [2, 64, 20], 85, None),
        ([9, 60, 30], [9, 10, 10], 49, [9, 20, 20]),  # the widest first
        ([9, 60, 30], [9, 10, 25], 49, [9, 15, 25]),
        ([5], [5], 4, None),
    ],
)
def test_columns_are_narrowed_as_little_as_can_be(
    natural: list[int], least: list[int], room: int, widths: list[int] | None
) -> None:
    assert narrowed(natural, least, room) == widths


_cells = st.text(st.sampled_from("ab19 é漢🔑"), max_size=30)


@given(rows=st.lists(st.tuples(_cells, _cells, _cells), min_size=1, max_size=3), columns=st.integers(1, 120))
def test_no_character_is_ever_cut_off(rows: list[tuple[str, str, str]], columns: int) -> None:
    text = shown(columns, ("i", "n", "w"), rows, wrap=["w"])
    if "i: " in text:  # blocks
        rows_shown = [[line[3:] for line in block.split("\n")] for block in text.removesuffix("\n").split("\n\n")]
        assert rows_shown == [list(row) for row in rows]
        return
    assert all(cell_len(line) <= columns for line in text.splitlines())
    letters = sorted(each for row in rows for value in row for each in value if each != " ")
    body = text.split("─")[-1]
    assert sorted(each for each in body if not each.isspace()) == letters
