"""Programs on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess


def on_a_terminal(command: list[str], *, columns: int = 120) -> list[str]:
    """The lines that ``command`` shows on a terminal, without colours; at most some 60 KiB."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    subprocess.run(command, stdout=terminal, env=environment, check=True, timeout=60)
    os.close(terminal)
    shown = os.read(controller, 60_000).decode()
    os.close(controller)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
