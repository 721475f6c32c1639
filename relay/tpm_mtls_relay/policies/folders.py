"""Where policies lie: found by a key's Name, read when they changed."""

from __future__ import annotations

import os
import stat

from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.policies.fields import SIZE_LIMIT, PolicyFileError
from tpm_mtls_relay.policies.file import Assertion, Authorize, SignedPolicy, parse_key_policy, parse_signed_policy

KEY_SUFFIX = ".policy.json"
SIGNED_SUFFIX = ".signed-policy.json"

FILES_LIMIT = 64
"""Signed policies that are read."""

SIGNED_LIMIT = 16
"""Signed policies that are tried for a key, the newest ones."""


class PolicyFolders:
    """The policies in ``folders``; what two of them have, the first one's counts."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = list(dict.fromkeys(folders))

    def state(self) -> tuple[tuple[int, int], ...]:
        """Differs when a file came, went or was replaced; costs one system call for each folder."""
        return tuple(_state(folder) for folder in self._folders)

    def key_policy(self, name: bytes) -> tuple[Assertion, ...] | None:
        """The policy of the key with this Name; none if no folder has it.

        Raises:
            PolicyFileError: it is damaged, unreadable or another key's.
        """
        for folder in self._folders:
            data = _read(f"{folder}/{name.hex()}{KEY_SUFFIX}")
            if data is not None:
                said, policy = parse_key_policy(data)
                if said != name:
                    raise PolicyFileError("it is another key's")
                return policy
        return None

    def signed_policies(self, authorize: Authorize) -> tuple[list[SignedPolicy], RelayError | None]:
        """The newest policies that ``authorize`` asks for, the newest first; and what is wrong with another file.

        One damaged file does not take the others' effect.
        """
        found: list[SignedPolicy] = []
        damage: RelayError | None = None
        for path in self._signed_files():
            try:
                data = _read(path)
                signed = parse_signed_policy(data) if data is not None else None
            except RelayError as error:
                damage = error
                continue
            if signed and (signed.signer_name, signed.policy_ref) == (authorize.signer_name, authorize.policy_ref):
                found.append(signed)
        found.sort(key=lambda signed: -signed.version)
        return found[:SIGNED_LIMIT], damage

    def _signed_files(self) -> list[str]:
        paths = []
        for folder in self._folders:
            try:
                names = os.listdir(folder)  # noqa: PTH208 - pathlib is slow to import
            except OSError:
                continue  # nothing is there; the key's own policy is looked for by name, and said to be missing
            # a dot begins what is not written yet
            paths += [f"{folder}/{name}" for name in names if name.endswith(SIGNED_SUFFIX) and name[0] != "."]
        return sorted(paths)[-FILES_LIMIT:]


def _state(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116 - pathlib is slow to import
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino


def _read(path: str) -> bytes | None:
    """The content of a file, at most one byte more than `SIZE_LIMIT`; none if there is no such file."""
    try:
        # a named pipe would block for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PolicyFileError(f"it cannot be read ({error.strerror})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PolicyFileError("it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise PolicyFileError(f"it cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)
