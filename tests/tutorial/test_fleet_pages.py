"""docs/tutorial/, pages 7 to 14: each by itself, in a fleet's folder as page 7 makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.tutorial import Reader


def test_three_ways_to_make_a_device(reader: Reader) -> None:
    reader.follow("07-manufacturing")


@pytest.mark.parametrize(
    "page",
    [
        "08-pcr-bound-keys",
        "09-enrollment-with-evidence",
        "10-secrets",
        "11-attestation",
        "12-os-updates",
        "13-renewal-and-board-swap",
        "14-in-c",
    ],
)
def test_a_page_needs_nothing_but_the_company(page: str, fleet_reader: Reader) -> None:
    fleet_reader.follow(page)


def test_a_page_that_was_broken_off_once_more(fleet_reader: Reader) -> None:
    fleet_reader.follow("08-pcr-bound-keys", broken_off="Boot something else")
