"""A tiny run of ./run bench: every program works, the counts are right, and the document gets its tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
MARKS = "before\n<!-- made by ./run bench --write: begin -->\nold\n<!-- made by ./run bench --write: end -->\nafter\n"
_COUNTS = ("--only", "counts", "--algorithm", "ecc-p256", "--tls", "TLSv1_3")


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def _lines(done: subprocess.CompletedProcess[str], title: str) -> list[str]:
    """The table ``title`` without its head."""
    assert done.returncode == 0, done.stderr
    _, _, rest = done.stdout.partition(f"\n{title}")
    return rest.partition("\n\n")[0].splitlines()[2:]


def test_it_counts_what_reaches_the_tpm() -> None:
    rows = [line.split("  ") for line in _lines(_bench(*_COUNTS), "TPM commands of a client")]
    requests = {" ".join(part.strip() for part in row[1:-1] if part)[:60]: row[-1].strip() for row in rows}
    full = [request for what, request in requests.items() if "relay" in what]
    alone = [request for what, request in requests.items() if "alone" in what]
    assert len(rows) == len(full) + len(alone)
    assert set(full) == {"1 (Sign)", "0", "3 (StartAuthSession, PolicyPCR, Sign)"}
    assert {request.partition(" ")[0] for request in alone} == {"3"}


def test_it_compares_programs_in_turns_and_writes_a_document(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(MARKS)
    done = _bench(
        *("--only", "startups", "--only", "handshakes", "--only", "threads", "--runs", "1", "--requests", "2"),
        *("--algorithm", "ecc-p256", "--latency-model", "", "--write", str(document)),
    )
    rows = _lines(done, "A request on a new connection")
    assert len(rows) == 9
    assert all(" ms" in row for row in rows)
    text = document.read_text()
    assert text.startswith("before\n<!-- made by ./run bench --write: begin -->\n\nMeasured on ")
    assert text.endswith("\n\n<!-- made by ./run bench --write: end -->\nafter\n")
    assert "| our client, relay | " in text
    assert "old" not in text


def test_a_document_without_the_marks_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_table import write_block

    document = tmp_path / "performance.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="has no line <!-- made by"):
        write_block(document, "", [])
    assert document.read_text() == "nothing"


def test_it_counts_and_times_secrets_beside_tpm2_tools() -> None:
    done = _bench("--only", "secrets", "--runs", "1")
    counted = {row[0]: row[-1] for row in _cells(done, "TPM commands for a secret")}
    assert counted["get"] == "2 (StartAuthSession, NV_Read)"
    assert counted["get, bound to a PCR"] == "3 (StartAuthSession, PolicyPCR, NV_Read)"
    assert counted["set, in place"] == "2 (StartAuthSession, NV_Write)"
    assert counted["set, a new name"].startswith("4 ")
    timed = _cells(done, "Reading a secret of 32 bytes")
    assert len(timed) == 10
    assert all(row[1].endswith(" ms") and row[4].endswith(" ms") for row in timed)


def test_it_counts_verified_quotes_beside_tpm2_checkquote() -> None:
    rows = {row[0]: row[1:] for row in _cells(_bench("--only", "attestation", "--quotes", "20"), "Verifying a quote")}
    assert len(rows) == 7
    assert rows["bare signature verification"][1] == "1.00"
    assert rows["`tpm2_checkquote`"][2] == "1.0"
    assert all(float(cell) >= 0 for row in rows.values() for cell in row)


def _cells(done: subprocess.CompletedProcess[str], title: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in _lines(done, title)]
