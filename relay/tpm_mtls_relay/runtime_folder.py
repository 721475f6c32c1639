"""A folder of this user's own, for what may be lost: a restart of the machine empties it."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = "tpm-mtls-relay"  # not tpm-mtls: that is the agent's, for all to read
_PRIVATE = 0o700


def runtime_folder(environment: Mapping[str, str] | None = None, *, system: str = "/run") -> str | None:
    """A folder that only this user can read and write, made if need be; none where there can be none.

    The first that works of systemd's RuntimeDirectory= (RUNTIME_DIRECTORY, systemd.exec(5)), XDG_RUNTIME_DIR (XDG Base
    Directory Specification 0.8) and, for root, ``system``.

    Args:
        environment: the process's environment variables.
        system: where root's folder goes.
    """
    variables = os.environ if environment is None else environment
    parents = [*variables.get("RUNTIME_DIRECTORY", "").split(":"), variables.get("XDG_RUNTIME_DIR", "")]
    if os.geteuid() == 0:
        parents.append(system)
    for parent in parents:
        if parent.startswith("/") and _is_private(folder := f"{parent}/{_NAME}"):
            return folder
    return None


def _is_private(folder: str) -> bool:
    try:
        os.mkdir(folder, _PRIVATE)  # noqa: PTH102 - pathlib is slow to import
    except FileExistsError:
        pass
    except OSError:
        return False
    found = os.lstat(folder)  # a symbolic link could lead into somebody else's
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
