"""TCTI strings: where the TPM is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tpm_mtls.configuration import load_configuration
from tpm_mtls.device_nodes import chip_name, is_managed, managed_node
from tpm_mtls.errors import TctiInvalidError, TpmUnavailableError, TpmVersionError

DEFAULT_TCTI = "device:/dev/tpmrm0"
"""The kernel's resource manager: several programs at once; the provider's own default, /dev/tpm0, admits only one."""

ENVIRONMENT = "TPM_MTLS_TCTI"
_LIBTSS2_DEFAULT = ("device", "device:")  # libtss2 tries the resource manager first, too (tcti-device.c, default_conf)
KNOWN = ("device", "swtpm", "mssim", "tabrmd", "cmd", "pcap", "libtpms")


def resolve_tcti(explicit: str | None, *, kernel: Path = Path("/sys/class/tpm")) -> str:
    """The TCTI string to use: ``explicit``, else $TPM_MTLS_TCTI, else the configuration's, else `DEFAULT_TCTI`.

    Args:
        explicit: what the user gave, if anything.
        kernel: folder in which the kernel describes its TPM devices.

    Raises:
        UsageError, StorageError: the configuration file is wrong, or cannot be read.
        TctiInvalidError: it names no known transport.
        TpmUnavailableError: it is a device file that is not there, is none, or may not be opened.
        TpmVersionError: it is a device that says it is a TPM 1.2.
    """
    tcti = chosen_tcti(explicit)
    name, _, configuration = tcti.partition(":")
    if name == "device":
        _check_device(Path(configuration), tcti, kernel)
    return tcti


def chosen_tcti(explicit: str | None) -> str:
    """As `resolve_tcti`, without a look at the device that it may name.

    Raises:
        UsageError, StorageError, TctiInvalidError: as `resolve_tcti`.
    """
    tcti = explicit or os.environ.get(ENVIRONMENT) or load_configuration().tcti or DEFAULT_TCTI
    tcti = DEFAULT_TCTI if tcti in _LIBTSS2_DEFAULT else tcti
    if tcti.partition(":")[0] not in KNOWN or re.search(r"[\x00-\x1f]", tcti):
        meant = f"did you mean device:{tcti}? " if re.fullmatch(r"/dev/\w+", tcti) else ""
        raise TctiInvalidError(
            f"not a TCTI string: {tcti[:80]!r}",
            hint=f"{meant}examples: {DEFAULT_TCTI}, swtpm:port=2321 (known transports: {', '.join(KNOWN)})",
            tcti=tcti,
        )
    return tcti


def is_raw(tcti: str) -> bool:
    """Whether ``tcti``, a resolved one, may lead to a TPM without resource manager, which keeps what is left in it."""
    name, _, configuration = tcti.partition(":")
    if name == "pcap":
        return is_raw(configuration)
    return name != "tabrmd" and not (name == "device" and is_managed(Path(configuration).name))


def _check_device(device: Path, tcti: str, kernel: Path) -> None:
    version = kernel / chip_name(device.name) / "tpm_version_major"
    if version.exists() and version.read_text().strip() == "1":  # which has no resource manager's node
        raise TpmVersionError(f"{device} is a TPM 1.2", hint="a TPM 2.0 is needed; some firmware can switch", tcti=tcti)
    if not device.exists():
        raise TpmUnavailableError(
            f"there is no TPM at {device}",
            hint="is the TPM enabled in the firmware and its driver loaded (ls /dev/tpm*)? "
            "to try without one: tpm-mtls simulator start --dir D, then --tcti with what it prints",
            tcti=tcti,
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise TpmUnavailableError(f"this user may not open {device}", hint=_who_may(device), tcti=tcti)
    if not device.is_char_device():  # what a file holds would be overwritten by the first command
        raise TpmUnavailableError(f"{device} is no device", hint=f"name the TPM's: --tcti {DEFAULT_TCTI}", tcti=tcti)


def _who_may(device: Path) -> str:
    """By the rules of tpm-udev, the group tss may open the resource manager only."""
    if re.fullmatch(r"tpm\d+", device.name):
        return f"run it as root or, as a member of the group tss, with --tcti device:{managed_node(str(device))}"
    return "run it as root or as a member of the group tss"
