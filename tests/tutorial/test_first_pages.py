"""docs/tutorial/, pages 1 to 6: a reader's first TPM key, one page after the other in one home folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.tutorial import ROOT

if TYPE_CHECKING:
    from support.tutorial import Reader


def test_from_a_file_to_a_handle(reader: Reader) -> None:
    for page in (
        "01-why-not-a-file",
        "02-is-there-a-tpm",
        "03-client-and-server-with-tls",
        "04-the-key-in-the-tpm",
        "05-a-persistent-handle",
        "06-what-changes-in-the-handshake",
    ):
        reader.follow(page)
    reader.follow("README", begin=ROOT)
    assert not (reader.home / "tpm-tutorial").exists(), "its last block removes everything"


def test_a_page_that_was_broken_off_once_more(reader: Reader) -> None:
    reader.follow("03-client-and-server-with-tls", broken_off="What is refused")
    reader.follow("04-the-key-in-the-tpm", broken_off="Steal it")
