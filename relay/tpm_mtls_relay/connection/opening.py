"""The way to the TPM that a TCTI names."""

from __future__ import annotations

from tpm_mtls_relay.connection.transport import DeviceTransport, Limits, SwtpmTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.connection.transport import Transport

_DEVICE = "/dev/tpmrm0"


def open_transport(tcti: str, limits: Limits | None = None) -> Transport:
    """The transport for ``tcti``: ``device``, ``swtpm`` and ``cmd`` as libtss2 has them.

    Every other one goes through tpm2-tools' program tpm2_send.

    Raises:
        TransportError: nobody answers there.
    """
    limits = limits or Limits()
    name, _, configuration = tcti.partition(":")
    if name == "device":
        return DeviceTransport(configuration or _DEVICE, limits)
    if name == "swtpm":
        return SwtpmTransport(configuration, limits)
    from tpm_mtls_relay.connection.helper import HelperTransport  # noqa: PLC0415 - rare

    if name == "cmd":
        return HelperTransport(["/bin/sh", "-c", configuration], limits)
    return HelperTransport(["tpm2_send", "-T", tcti], limits)


def is_raw(tcti: str) -> bool:
    """Whether ``tcti`` leads to a TPM without a resource manager.

    What was loaded through a connection stays there when the connection ends, and everybody's handles are everybody's.
    """
    name, _, configuration = tcti.partition(":")
    if name == "device":
        return not (configuration or _DEVICE).rpartition("/")[2].startswith("tpmrm")
    return name == "swtpm"
