"""Counters in Prometheus' text form, which several relays keep together."""

from __future__ import annotations

import re
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, simple_command
from tpm_mtls_relay.observers import counters
from tpm_mtls_relay.observers.counters import BOUNDS, Counters, Counts, read_counts

if TYPE_CHECKING:
    from pathlib import Path

RANDOM, SIGN, VENDOR = (simple_command(code) for code in (0x17B, 0x15D, 0x20000001))
SUCCESS, RETRY = (HEADER.pack(NO_SESSIONS, 10, code) for code in (0, 0x922))

# a line of the exposition format, as the format's description has it: name, labels, number
LINE = re.compile(r'[a-z_]+\{[a-z_]+="[^"\\\n]+"(,[a-z_]+="[^"\\\n]+")*\} [0-9.]+')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tpm.prom"


def value(file: Path, line: str) -> float:
    """The number of the one line that begins so."""
    (row,) = [row for row in file.read_text().splitlines() if row.startswith(f"{line} ")]
    return float(row.rpartition(" ")[2])


def test_commands_their_time_and_their_errors_are_counted(file: Path) -> None:
    counted = Counters(str(file))
    counted(SIGN, SUCCESS, 1.0, 0.06)
    counted(SIGN, SUCCESS, 2.0, 0.04)
    counted(SIGN, RETRY, 3.0, 0.0001)
    counted(RANDOM, SUCCESS, 4.0, 100.0)
    counted.close()
    assert value(file, 'tpm_mtls_command_seconds_count{command="Sign"}') == 3
    assert value(file, 'tpm_mtls_command_seconds_sum{command="Sign"}') == pytest.approx(0.1001)
    assert value(file, 'tpm_mtls_command_errors_total{command="Sign",response_code="0x922"}') == 1
    buckets = {le: value(file, f'tpm_mtls_command_seconds_bucket{{command="Sign",le="{le:g}"}}') for le in BOUNDS}
    assert (buckets[0.0005], buckets[0.02], buckets[0.05], buckets[0.1], buckets[30.0]) == (1, 1, 2, 3, 3)
    assert value(file, 'tpm_mtls_command_seconds_bucket{command="GetRandom",le="30"}') == 0
    assert value(file, 'tpm_mtls_command_seconds_bucket{command="GetRandom",le="+Inf"}') == 1


def test_the_file_is_prometheus_text_that_others_may_read(file: Path) -> None:
    counted = Counters(str(file))
    counted(SIGN, RETRY, 1.0, 0.06)
    counted.close()
    rows = file.read_text().splitlines()
    assert [row for row in rows if not row.startswith("#") and not LINE.fullmatch(row)] == []
    assert [row for row in rows if row.startswith("# TYPE")] == [
        "# TYPE tpm_mtls_command_seconds histogram",
        "# TYPE tpm_mtls_command_errors_total counter",
    ]
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444


def test_relays_add_to_what_is_there(file: Path) -> None:
    for _ in range(3):
        counted = Counters(str(file))
        counted(SIGN, SUCCESS, 1.0, 0.06)
        counted.close()
    assert value(file, 'tpm_mtls_command_seconds_count{command="Sign"}') == 3
    assert value(file, 'tpm_mtls_command_seconds_sum{command="Sign"}') == pytest.approx(0.18)


def test_relays_that_end_at_once_lose_nothing(file: Path) -> None:
    def work() -> None:
        counted = Counters(str(file))
        for _ in range(5):
            counted(SIGN, SUCCESS, 1.0, 0.06)
        counted.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(file, 'tpm_mtls_command_seconds_count{command="Sign"}') == 40
    assert sorted(path.name for path in file.parent.iterdir()) == ["tpm.prom", "tpm.prom.lock"]


def test_a_running_relay_shows_its_counts_but_does_not_write_at_each_command(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counters(str(file))
    counted(SIGN, SUCCESS, 1.0, 0.06)
    assert "Sign" not in file.read_text()
    monkeypatch.setattr(counters, "INTERVAL", 0.0)
    counted(SIGN, SUCCESS, 1.0, 0.06)
    assert value(file, 'tpm_mtls_command_seconds_count{command="Sign"}') == 2
    counted.close()


def test_commands_that_are_not_known_are_counted_together(file: Path) -> None:
    counted = Counters(str(file))
    counted(VENDOR, SUCCESS, 1.0, 0.06)
    counted(simple_command(0x20000002), SUCCESS, 1.0, 0.06)
    counted.close()
    assert value(file, 'tpm_mtls_command_seconds_count{command="other"}') == 2


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir",
        "node_load1 0.5",
        'tpm_mtls_command_seconds_count{command="Sign"} many',
        'tpm_mtls_command_seconds_count{command="Sign"} -1',
        'tpm_mtls_command_seconds_count{command="Sign"} nan',
        'tpm_mtls_command_seconds_count{command="Sign" 1',
        "é",
        "#" * (counters.SIZE_LIMIT + 1),
    ],
)
def test_another_file_is_not_overwritten(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=r"tpm.prom is no file of counters"):
        Counters(str(file))
    assert file.read_text(encoding="utf-8") == text


def test_a_file_that_becomes_unwritable_stops_nothing(file: Path) -> None:
    counted = Counters(str(file))
    file.unlink()
    file.mkdir()
    counted(SIGN, SUCCESS, 1.0, 0.06)
    counted.close()
    counted.close()
    assert file.is_dir()


def test_what_a_killed_relay_left_is_no_obstacle(file: Path) -> None:
    (file.parent / "tpm.prom.tmp").write_text("half a li")
    Counters(str(file)).close()
    assert "histogram" in file.read_text()


@given(
    st.lists(st.tuples(st.sampled_from(["Sign", "Hash"]), st.sampled_from([0, 0x922]), st.floats(0, 100)), max_size=20)
)
def test_what_is_written_is_read_back(seen: list[tuple[str, int, float]]) -> None:
    counts = Counts()
    for command, response_code, seconds in seen:
        counts.add(command, response_code, seconds)
    again = read_counts(counts.text(), "file")
    assert again.numbers.keys() == counts.numbers.keys()
    assert all(again.numbers[line] == pytest.approx(counts.numbers[line], abs=1e-6) for line in again.numbers)
