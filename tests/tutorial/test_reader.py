"""The reader that follows the tutorial's pages notices what a page says wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tutorial import FOLDER, Reader, agrees, masked, steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGES = sorted(path.stem for path in FOLDER.glob("[0-9]*.md"))


@pytest.fixture
def follow(tmp_path: Path) -> Callable[[str], None]:
    """Follows a page of this text."""

    def follow(text: str) -> None:
        (tmp_path / "page.md").write_text(text)
        Reader(tmp_path / "home", tmp_path, patience=3.0).follow("page")

    return follow


def console(*lines: str) -> str:
    return "\n".join(["```console", *lines, "```", ""])


def test_one_shell_keeps_folder_variables_and_files(follow: Callable[[str], None]) -> None:
    follow(
        "```sh\nmkdir sub && cd sub\nexport WORD=other\ncat > text <<'EOF'\none\n\ntwo\nEOF\n```\n"
        + console("$ cat text", "one", "", "two", "$ echo $WORD \\", "    more", "other more", "$ pwd", "/home/you/sub")
    )


def test_what_is_printed_must_be_what_is_shown(follow: Callable[[str], None]) -> None:
    with pytest.raises(AssertionError, match=r"page.md, line 2:\necho one\n(.*\n)*\+one"):
        follow(console("$ echo one", "two"))
    with pytest.raises(AssertionError, match=r"line 2:\necho one >&2"):
        follow(console("$ echo one >&2"))


def test_a_command_ends_as_the_page_says(follow: Callable[[str], None]) -> None:
    follow(console("$ (exit 3)  # exit status 3"))
    with pytest.raises(AssertionError, match="ended with 3"):
        follow(console("$ (exit 3)"))
    with pytest.raises(AssertionError, match="ended with 0"):
        follow(console("$ true   # exit status 3"))


def test_every_command_of_a_block_succeeds(follow: Callable[[str], None]) -> None:
    with pytest.raises(AssertionError, match=r"line 2:(.*\n)*ended the shell"):
        follow("```sh\nfalse\ntrue\n```\n")


def test_a_page_ends_its_servers(follow: Callable[[str], None]) -> None:
    follow(console("$ sleep 60 > log &", "$ kill %1"))
    with pytest.raises(AssertionError, match="left a program running"):
        follow(console("$ sleep 60 > log &"))


def test_a_job_that_has_ended_gives_its_number_back(follow: Callable[[str], None]) -> None:
    """As at a prompt, whatever bash does in a script."""
    follow(console("$ sleep 60 > log &", "$ kill %1", "$ sleep 0.1", "$ sleep 60 > log &", "$ kill %1"))


def test_a_name_is_shown_as_either_version_of_openssl_prints_it(follow: Callable[[str], None]) -> None:
    follow(console("$ echo subject=CN=pump", "subject=CN = pump", "$ echo subject=CN = pump", "subject=CN=pump"))
    with pytest.raises(AssertionError, match="CN=valve"):
        follow(console("$ echo subject=CN=valve", "subject=CN = pump"))


def test_ports_are_free_ones_and_shown_as_written(follow: Callable[[str], None]) -> None:
    follow(console("$ echo https://localhost:8443/", "https://localhost:8443/", "$ [ 8443 -ge 12000 ]"))


def test_a_page_leaves_nothing_loaded_in_the_tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", "device:/dev/null")  # the reader's shell begins without such things
    start = '[ -z "$TPM2TOOLS_TCTI" ]\nexport TPM2TOOLS_TCTI="$(tpm-mtls simulator start --dir tpm --no-ek-cert)"\n'
    (tmp_path / "tidy.md").write_text(f"```sh\n{start}tpm2_getrandom --hex 8\n```\n")
    (tmp_path / "untidy.md").write_text(f"```sh\n{start}tpm2_createprimary --key-algorithm ecc\n```\n")
    Reader(tmp_path / "home", tmp_path).follow("tidy")
    reader = Reader(tmp_path / "home", tmp_path)
    reader.follow("untidy")
    with pytest.raises(AssertionError):
        reader.finish()
    reader.finish()


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        ("serial 74bbcfb2515a2adc", "serial 62196457c6f5b5bc"),
        ("valid 2026-11-22T08:14:19Z", "valid 2027-01-01T00:00:00Z"),
        ("notAfter=Feb 20 08:18:43 2027 GMT", "notAfter=Mar  1 00:00:00 2030 GMT"),
        ("TPM +0.031 s   0.11 ms  Hash", "TPM     +1.204 s     104.90 ms  Hash"),
        ("swtpm:host=127.0.0.1,port=24617", "swtpm:host=127.0.0.1,port=2321"),
        ("…\nlast", "first\nsecond\nlast"),
        ("first\n…", "first"),
        ("python3 (28421) …", "python3 (7719) sends"),
    ],
)
def test_what_differs_each_time_may(shown: str, seen: str) -> None:
    assert agrees(shown + "\n", seen + "\n")


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        ("handle:0x81000100", "handle:0x81000101"),
        ("TPM  9 commands, 1 of them Sign", "TPM  8 commands, 1 of them Sign"),
        ("TPM_RC_POLICY_FAIL 0x99d", "TPM_RC_POLICY_FAIL 0x9a2"),
        ("", "more"),
        ("…\nlast", "last\nfirst"),
        ("valid until 2026-11-22", "valid until tomorrow"),
    ],
)
def test_nothing_else_may_differ(shown: str, seen: str) -> None:
    assert not agrees(shown + "\n", seen + "\n")


def test_masks_hide_little() -> None:
    assert masked("0x81000100  sensor-17  TLSv1.3  146 bytes") == "0x81000100 sensor-17 TLSv1.3 146 bytes"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_one_will_have_and_leads_on(page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text()
    assert text.startswith(f"# {int(page[:2])}. ")
    assert "\n*At the end:* " in text.partition("\n## ")[0], "what you will have at its end"
    assert steps(text)[0].commands.startswith(f"set -e\n. ~/tpm-tutorial/page.sh {int(page[:2])}\n")
    assert steps(text)[-1].commands.endswith("down\nset +e") or int(page[:2]) < 3, "its end ends what it began"
    last = text.rstrip().rpartition("\n\n")[2]
    assert page == PAGES[-1] or f"({PAGES[PAGES.index(page) + 1]}.md)" in last
    assert f"]({page}.md)" in (FOLDER / "README.md").read_text(), "the index has it"
