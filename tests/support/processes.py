"""Python processes that tests start."""

from __future__ import annotations

import os
import subprocess
import sys


def run_crippled(code: str, *arguments: str) -> str:
    """What ``code`` says on stderr in a Python that coverage does not measure.

    For programs that give up rights or disk space on the way: writing coverage's data at their exit would fail.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    return done.stderr.strip()
