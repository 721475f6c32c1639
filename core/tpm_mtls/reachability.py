"""Why no TPM could be opened, where this machine can tell: libtss2 says one code for every reason (TCTI IO_ERROR)."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final

from tpm_mtls.device_nodes import SILENT_CHIP, managed_node
from tpm_mtls.errors import TpmMtlsError, TpmUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_DEVICE: Final = re.compile(r"(?:pcap:)?device:(.+)")
_SOCKET: Final = re.compile(r"(?:pcap:)?(?:swtpm|mssim):(?:.*,)?host=([^,]+)")

_REASONS: Final = {
    errno.EBUSY: ("is in use, and admits one program at a time", "tpm-mtls doctor, as root, names who holds it"),
    errno.ENODEV: ("has no driver behind it any more", SILENT_CHIP),
    errno.ENXIO: ("has no driver behind it", SILENT_CHIP),
    errno.EPERM: (
        "is kept from this program by a sandbox",
        "in a systemd unit: DeviceAllow={path} rw; for a container: --device {path}",
    ),
}


def with_reason(error: TpmMtlsError, *, open_node: Callable[[str, int], int] = os.open) -> TpmMtlsError:
    """``error`` of an attempt to open a TPM, with the reason and another hint where there is one to see.

    The device node is opened once more, and closed at once; a simulator's host name is looked up. Only for an attempt
    that holds nothing itself: a node that this very program has open would be in use.

    Args:
        error: of any class; only a plain `TpmUnavailableError` has more to say.
        open_node: as `os.open`; raises ``OSError``.
    """
    if type(error) is not TpmUnavailableError:
        return error
    found = None
    if device := _DEVICE.fullmatch(error.tcti):
        found = _why_shut(device[1], open_node)
    elif simulator := _SOCKET.match(error.tcti):
        found = _why_unknown(simulator[1])
    if found is None:
        return error
    reason, hint = found
    return TpmUnavailableError(f"{error}: {reason}", hint=hint, tcti=error.tcti)


def _why_shut(path: str, open_node: Callable[[str, int], int]) -> tuple[str, str] | None:
    try:
        os.close(open_node(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        said, hint = _REASONS.get(
            error.errno or 0, (f"cannot be opened, {(error.strerror or '').lower()}", SILENT_CHIP)
        )
        managed = managed_node(path)
        if error.errno == errno.EBUSY and managed != path:
            hint += f"; several programs at once may use --tcti device:{managed}"
        return f"{path} {said}", hint.replace("{path}", path)
    return None


def _why_unknown(host: str) -> tuple[str, str] | None:
    import socket  # noqa: PLC0415 - only where something failed

    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return f"the name {host} does not resolve", "is it spelled right, and does this machine have a name server?"
    return None
