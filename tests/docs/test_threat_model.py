"""docs/threat-model.md is about every component, and says for each what stays with the user."""

from __future__ import annotations

import re

from support.named_commands import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_component_is_in_it() -> None:
    components = {path.parent.parent.name for path in ROOT.glob("*/tpm_mtls*/__init__.py")}
    assert len(components) == 8
    listed = re.findall(r"^\| `(\w+)` \|.*\]\(#", PAGE, re.MULTILINE)
    assert set(listed) == components


def test_every_section_says_what_is_worth_an_attack_and_what_does_not_stop_it() -> None:
    _, *sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    for section in sections:
        title = section.partition("\n")[0]
        if "| attacker" in section:
            head = re.findall(r"^\| attacker.*$", section, re.MULTILINE)
            assert all(line.endswith("| what does not |") for line in head), title
            rows = re.findall(r"^\| (?!attacker).*$", section, re.MULTILINE)
            assert all(row.count(" | ") == 2 for row in rows), title


def test_every_one_who_has_a_duty_has_it_in_the_last_section() -> None:
    duties = PAGE.rpartition("## What stays with you")[2]
    for duty in (
        "`--trust`",
        "allow-list",
        "passphrase",
        "CRL",
        "approve",
        "quarantine",
        "baseline|what a group should",
    ):
        assert re.search(duty, duties), duty
