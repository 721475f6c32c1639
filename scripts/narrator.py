"""How the demo speaks: chapters, commands, what they answered, what was shown."""

from __future__ import annotations

import sys
import textwrap


class Narrator:
    """Prints the story: colours on a terminal only."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self._chapter = 0

    def chapter(self, title: str, text: str = "") -> None:
        """A numbered heading, and what is about to happen."""
        self._chapter += 1
        self._print(f"\n{self._styled('1', f'{self._chapter}. {title}')}")
        for line in textwrap.wrap(text, width=100):
            self._print(f"   {line}")

    def command(self, words: list[str], *, background: bool = False, given: str = "") -> None:
        """The command that runs now, as one would type it; ``given`` is what it reads."""
        shown = " ".join(word if word.replace("-", "").isalnum() else _quoted(word) for word in words)
        shown = f"printf %s {_quoted(given)} | {shown}" if given else shown
        self._print(f"   {self._styled('36', f'$ {shown}' + (' &' if background else ''))}")

    def output(self, text: str) -> None:
        """What it answered."""
        for line in text.rstrip().splitlines():
            self._print(f"     {line}")

    def proof(self, text: str) -> None:
        """What has just been shown."""
        self._print(f"   {self._styled('32', '✓')} {text}")

    def _styled(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _print(self, line: str) -> None:
        print(line, flush=True)


def _quoted(word: str) -> str:
    return word if all(character.isalnum() or character in "-_./:=,%@" for character in word) else f"'{word}'"
