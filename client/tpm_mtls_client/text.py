"""Text from outside, made fit for a terminal."""

from __future__ import annotations


def one_line(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, without control characters and other invisible ones."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
