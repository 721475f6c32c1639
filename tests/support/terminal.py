"""Programs on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess


def on_a_terminal(command: list[str], *, columns: int = 120) -> list[str]:
    """The lines that ``command`` shows on a terminal, without colours; at most some 60 KiB."""
    shown = shown_on_a_terminal(command, COLUMNS=str(columns)).decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()


def shown_on_a_terminal(command: list[str], **variables: str) -> bytes:
    """What ``command`` shows on a terminal, which makes CR LF of each newline; at most some 60 KiB."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm"} | variables
    subprocess.run(command, stdout=terminal, env=environment, check=True, timeout=60)
    os.close(terminal)
    shown = os.read(controller, 60_000)
    os.close(controller)
    return shown
