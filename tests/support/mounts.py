"""Programs in a mount namespace of their own: what they mount is gone when they have ended."""

from __future__ import annotations

import subprocess

MOUNTS = ("unshare", "--map-root-user", "--mount")
"""In front of a command; unshare(1)."""


def may_mount() -> bool:
    """Whether this machine lets a program have mounts of its own."""
    return subprocess.run([*MOUNTS, "true"], capture_output=True, check=False).returncode == 0
