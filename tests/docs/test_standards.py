"""docs/standards.md names what there is, and all that the sources cite."""

from __future__ import annotations

import re

from support.named_commands import COMPONENTS, ROOT

PAGE = (ROOT / "docs" / "standards.md").read_text()
ROWS = [row.split(" | ") for row in re.findall(r"^\| (.* \| .* \| .*) \|$", PAGE, re.MULTILINE)]
PLACES = [(re.findall(r"RFC (\d+)", row[0]), re.findall(r"`([^`]+/[^`]*)`", row[2])) for row in ROWS]


def test_every_path_exists() -> None:
    paths = [path for _, paths in PLACES for path in paths]
    assert len(paths) > 100
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_row_says_where() -> None:
    implemented = PAGE.partition("## Left out on purpose")[0]
    rows = re.findall(r"^\| (?!document|---).* \|$", implemented, re.MULTILINE)
    assert [row for row in rows if "`" not in row.rpartition(" | ")[2]] == []


def test_every_rfc_that_a_source_cites_is_there_with_the_place() -> None:
    missing = []
    for component in COMPONENTS[:-1]:  # without the scripts
        for path in sorted((ROOT / component).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for number in sorted(set(re.findall(r"RFC ?(\d{4,5})\b", path.read_text()))):
                listed = [place for numbers, places in PLACES if number in numbers for place in places]
                if not any(name == place or (place.endswith("/") and name.startswith(place)) for place in listed):
                    missing.append(f"RFC {number}: {name}")
    assert missing == []


def test_every_advisory_that_is_judged_by_is_there() -> None:
    judged = set(re.findall(r"CVE-\d{4}-\d+", (ROOT / "core" / "tpm_mtls" / "tpm_firmware.py").read_text()))
    assert judged
    assert judged == set(re.findall(r"CVE-\d{4}-\d+", PAGE))
