"""The reference pages and the manual pages, made from the program itself.

scripts/reference.py [--check]

Run it after a change of an option, a setting or a public function. A test runs it with --check.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from reference_api import api_page
from reference_cli import command_line
from reference_commands import command_pages
from reference_configuration import configuration_page
from reference_man import man_pages
from reference_response_codes import response_codes_page

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs/reference/commands", "packaging/man")
"""Where nothing else may be: what is not made any more is removed."""
_BACK = "\n\n[All pages](../README.md)\n"


def pages() -> dict[str, str]:
    """All that is made: text by path, relative to the project."""
    root = command_line()
    commands = {f"docs/reference/commands/{name}": text for name, text in command_pages(root).items()}
    manuals = {f"packaging/man/{name}": text for name, text in man_pages(root, version("tpm-mtls")).items()}
    others = {
        "docs/reference/api.md": api_page(),
        "docs/reference/configuration.md": configuration_page(),
        "docs/reference/response-codes.md": response_codes_page(),
    }
    return commands | manuals | {path: text.rstrip("\n") + _BACK for path, text in others.items()}


def outdated(made: dict[str, str], project: Path) -> list[str]:
    """The paths of pages that are missing, differ from what is ``made``, or are not made any more."""
    there = {str(path.relative_to(project)) for folder in FOLDERS for path in (project / folder).glob("*")}
    differing = {path for path, text in made.items() if _content(project / path) != text}
    return sorted(differing | (there - made.keys()))


def _content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def write(made: dict[str, str], project: Path) -> list[str]:
    """Writes what differs below ``project``, removes what is not made any more, and returns the paths of both."""
    found = outdated(made, project)
    for path in found:
        if path in made:
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(made[path])
        else:
            (project / path).unlink()
    return found


def main() -> int:
    """Writes the pages, or with --check says which ones would change."""
    parser = argparse.ArgumentParser(description="The reference pages, made from the program itself.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not as it should be")
    arguments = parser.parse_args()
    found = (outdated if arguments.check else write)(pages(), ROOT)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if arguments.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
