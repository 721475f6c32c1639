"""docs/tutorial/, pages 1 to 6: a reader's first TPM key, one page after the other in one home folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.tutorial import Reader


def test_from_a_file_to_a_handle(reader: Reader) -> None:
    reader.follow("02-is-there-a-tpm")
