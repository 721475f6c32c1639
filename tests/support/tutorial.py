"""The tutorial's pages, followed as a reader follows them: their commands in order, and what they print compared.

What a page (``docs/tutorial/NN-name.md``) is made of:

- A block ``sh`` is copied into the shell as a whole. Every command in it succeeds; what it prints is not compared.
- A block ``console`` has commands after ``$ `` (a backslash at the end continues one), each followed by what it prints,
  standard error included. A command that must fail ends with ``# exit status N``. In what is printed a line ``…``
  stands for any number of lines, and a ``…`` within a line for any text. Dates, serials, keys, ports, durations and
  process ids may differ (``masked``).
- Other blocks (``text``, ``toml``, ``python``) are read, not run.

A page begins in a new shell, and its first block gets a reader there from anywhere, any number of times (``page.sh``).
It ends the servers that it began (``down``); the files stay for the next page. A port is one of ``PORTS``.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from support.tpm import SimulatedTpm
from tpm_mtls_simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorial"
PORTS = ("8080", "8443", "8444", "9443", "9444")  # in a test each is another one, that is free
_FREE_PORTS = range(12000, 20000)  # below those of simulated TPMs and of outgoing connections
_MARK = "==step=="
# What a shell does at each prompt: it forgets the jobs that have ended, so that the next one is %1 again. In a script
# bash 5.2.37 (Debian 13) keeps them, 5.2.15 (Debian 12) does not.
_PROMPT = "jobs > /dev/null"
_BLOCK = re.compile(r"^```(?P<language>sh|console)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_STATUS = re.compile(r"\s+# exit status (?P<status>\d+)$")
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_MASKS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?", "<date>"),
        (r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?", "<date>"),
        (rf"\b({_MONTHS}) +\d+ \d\d:\d\d:\d\d \d{{4}}( GMT)?", "<date>"),
        (r"\b([0-9A-Fa-f]{2}:){5,}([0-9A-Fa-f]{2}\b)?", "<hex>"),
        (r"\b(?!0x)[0-9A-Fa-f]{12,}\b…?", "<hex>"),
        (r"[A-Za-z0-9+/]{40,}={0,2}", "<base64>"),
        (r"(?<=:)\d{4,5}\b|(?<=port=)\d+", "<port>"),
        (r" *[+-]?\b\d+(\.\d+)? (µs|ms|s|seconds)\b", " <time>"),
        (r"\(\d{2,}\)", "(<pid>)"),
        (r"\bCN ?= ?", "CN="),  # OpenSSL 3.2 and later print a name without the blanks
    )
)


@dataclass(frozen=True)
class Step:
    """What is typed at once, and what must come of it; ``shown`` is none where nothing is compared."""

    line: int
    commands: str
    status: int
    shown: str | None


def steps(text: str) -> list[Step]:
    """All that a page makes its reader do, in order."""
    found: list[Step] = []
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start("body")) + 1
        if block["language"] == "sh":
            found.append(Step(first, f"set -e\n{block['body']}set +e", 0, None))
        else:
            found.extend(_typed(block["body"].splitlines(), first))
    return found


def _typed(lines: list[str], first: int) -> Iterator[Step]:
    assert lines[0].startswith("$ "), f"line {first}: a console block begins with a command"
    index = 0
    while index < len(lines):
        begin, command = index, lines[index].removeprefix("$ ")
        while lines[index].endswith("\\"):
            index += 1
            command += "\n" + lines[index]
        index += 1
        output = index
        while index < len(lines) and not lines[index].startswith("$ "):
            index += 1
        status = _STATUS.search(command)
        shown = "".join(f"{line}\n" for line in lines[output:index])
        yield Step(first + begin, _STATUS.sub("", command), int(status["status"]) if status else 0, shown)


def masked(text: str) -> str:
    """``text`` without what differs each time, and with one blank for several: columns are as wide as the terminal."""
    for pattern, name in _MASKS:
        text = pattern.sub(name, text)
    return re.sub(r"[ \t]+(\n?)", lambda blanks: blanks[1] or " ", text)


def _above(text: str, heading: str | None) -> str:
    """What stands above ``heading``; all, if there is none."""
    above, found, _ = text.partition(f"\n## {heading}\n")
    assert found or heading is None, f"no heading {heading}"
    return above


def agrees(shown: str, seen: str) -> bool:
    """Whether a command printed (``seen``) what its page shows."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in masked(shown).splitlines()
    )
    ended = seen if seen.endswith("\n") or not seen else f"{seen}\n"  # a page cannot show its lack
    return re.fullmatch(pattern, masked(ended)) is not None


class Reader:
    """Somebody at home in ``home`` who follows ``pages`` one by one, each for at most ``patience`` seconds."""

    def __init__(self, home: Path, pages: Path = FOLDER, *, patience: float = 300.0) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._pages, self._patience = pages, patience
        free = random.sample(_FREE_PORTS, 8 * len(PORTS))
        self._ports = dict(zip(PORTS, filter(_is_free, free), strict=False))
        kept = {"LANG", "XDG_RUNTIME_DIR", "TMPDIR"}
        self._environment = {name: value for name, value in os.environ.items() if name in kept} | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def follow(
        self, name: str, *, until: str | None = None, broken_off: str | None = None, begin: Path | None = None
    ) -> None:
        """Does all that ``docs/tutorial/NAME.md`` says, in a new shell; what is printed must be what it shows.

        With ``until`` only what stands above that heading. With ``broken_off`` first what stands above that heading,
        and then, without a tidy-up, all of it ``again``. The shell begins in the folder ``begin``, by default at home.
        """
        page = self._pages / f"{name}.md"
        text = page.read_text()
        found = steps(_above(text, until))
        assert found, page
        if broken_off is not None:
            first = found[0]
            again = re.sub(r"(?m)^(\. ~/tpm-tutorial/page\.sh \d+)$", r"\1 again", first.commands)
            assert again != first.commands
            found = [*steps(_above(text, broken_off)), replace(first, commands=again), *found[1:]]
        printed = self._run(name, found, begin or self.home)
        results = re.findall(rf"^{_MARK} begin\n(.*?)\n{_MARK} end (\d+)$", printed, re.DOTALL | re.MULTILINE)
        for index, step in enumerate(found):
            where = f"{page.name}, line {step.line}:\n{step.commands}\n"
            assert index < len(results), f"{where}ended the shell:\n{printed.rpartition(_MARK)[2]}"
            seen, status = results[index]
            assert int(status) == step.status, f"{where}ended with {status}:\n{seen}"
            if step.shown is not None:
                seen = self.as_on_the_page(seen)
                assert agrees(step.shown, seen), where + _difference(step.shown, seen)

    def typed(self, commands: str) -> str:
        """``commands`` of a page, with ports that are free."""
        for written, free in self._ports.items():
            commands = re.sub(rf"\b{written}\b", str(free), commands)
        return commands

    def as_on_the_page(self, seen: str) -> str:
        """What was printed with the page's ports and home."""
        for written, free in self._ports.items():
            seen = re.sub(rf"\b{free}\b", written, seen)
        return seen.replace(str(self.home), "/home/you")

    def finish(self) -> None:
        """Switches the simulated TPMs off; none may hold what a page forgot there."""
        for settings in self.home.rglob("simulator.json"):
            status = Simulator(settings.parent).status()
            if status is not None and status.running:
                tpm = SimulatedTpm(settings.parent)
                try:
                    tpm.assert_nothing_leaked()
                finally:
                    tpm.stop()

    def _run(self, name: str, found: list[Step], begin: Path) -> str:
        """What the page's shell printed: each step's output between two marks."""
        script, output = self.home / f".{name}.sh", self.home / f".{name}.out"
        script.write_text("".join(self._marked(step) for step in found) + "wait\n")
        with output.open("wb") as file:
            shell = subprocess.Popen(
                ["bash", script],
                cwd=begin,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                shell.wait(self._patience)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{name} does not end, or left a program running:\n{output.read_text()}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
        return output.read_text()

    def _marked(self, step: Step) -> str:
        return (
            f"{_PROMPT}\necho '{_MARK} begin'\n{self.typed(step.commands)}\nended_with=$?\n"
            f"printf '\\n{_MARK} end %s\\n' $ended_with\n[ $ended_with = {step.status} ] || exit 1\n"
        )


def newcomer(home: Path) -> Reader:
    """A reader who has installed, and has made the tutorial's folder as its first page says."""
    reader = Reader(home)
    reader.follow("README", until="Once more", begin=ROOT)
    return reader


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _difference(shown: str, seen: str) -> str:
    lines = difflib.unified_diff(masked(shown).splitlines(), masked(seen).splitlines(), "the page", "the shell", n=99)
    return "\n".join(lines) + f"\n\nas printed:\n{seen}"
