"""The one-time token with which a device proves to the CA, once, that it may enroll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.authorization import Secret
from tpm_mtls.device_names import check_device_name
from tpm_mtls.errors import UsageError
from tpm_mtls.files import check_private, read_capped

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_LIMIT = 512
"""Bytes of a token file: a device name has at most 64, a token some 50."""


@dataclass(frozen=True)
class BootstrapToken:
    """User name and password of the enrollment (RFC 7030, 3.2.3).

    Attributes:
        device: the name that the certificate will have.
        secret: the token.
    """

    device: str
    secret: Secret


def read_token(path: Path, *, device: str | None) -> BootstrapToken:
    """The token in the file ``path``: one line, ``DEVICE:TOKEN``, or the token alone when ``device`` is given.

    Raises:
        StorageError: it cannot be read, or other users can read it.
        PemError: it is oversized.
        UsageError: it is no token, names no device, or another than ``device``.
    """
    check_private(path)
    line = read_capped(path, limit=TOKEN_LIMIT).removesuffix(b"\n").removesuffix(b"\r")
    name, colon, token = line.rpartition(b":")
    if not token or not all(0x21 <= byte <= 0x7E for byte in line):  # noqa: PLR2004 - printable ASCII without space
        raise UsageError(f"{path} holds no token", hint="expected one line, DEVICE:TOKEN; tpm-mtls pki token create")
    named = name.decode() if colon else None
    if named is not None and device is not None and named != device:
        raise UsageError(f"{path} is for {named[:80]!r}, not for {device!r}", hint="leave out --device")
    chosen = device or named
    if chosen is None:
        raise UsageError(f"{path} does not say for which device the token is", hint="add --device NAME")
    return BootstrapToken(check_device_name(chosen), Secret(token))
