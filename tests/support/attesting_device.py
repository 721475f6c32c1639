"""A device in software that shows a running backend what it booted."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support.event_logs import agile_log, entry, values_of
from support.https import HttpsClient
from support.quotes import made_evidence, software_key
from tpm_mtls.attestation.messages import encode
from tpm_mtls.device_identity import TpmIdentity
from tpm_mtls.event_log import EventType, parse_event_log

if TYPE_CHECKING:
    from support.attestation import AttestationKey
    from support.device_ca import DeviceCa
    from support.quotes import Values
    from tpm_mtls.identity import Identity


@dataclass(frozen=True)
class Boot:
    """What a machine booted: PCR values, and the event log that leads to them."""

    values: Values
    log: bytes


def boot_of(kernel: str = "vmlinuz-6.12", *, command_line: str = "root=/dev/sda1 quiet") -> Boot:
    """The boot of ``kernel``: firmware, a boot loader's program, its command line."""
    log = agile_log(
        entry(0, EventType.EV_S_CRTM_VERSION, "1.0\0".encode("utf-16-le")),
        entry(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, b"", measured=kernel.encode()),
        entry(8, EventType.EV_IPL, f"kernel_cmdline: {command_line}\0".encode(), measured=command_line.encode()),
        entry(9, EventType.EV_IPL, f"/{kernel}\0".encode(), measured=kernel.encode()),
    )
    values = {pcr: bytes(32) for pcr in range(16)} | dict.fromkeys(range(17, 23), b"\xff" * 32)
    return Boot({"sha256": values | dict(values_of(parse_event_log(log)))}, log)


@dataclass
class AttestingDevice:
    """A device with a TLS key and an attestation key in software, which a CA certified as if of one TPM.

    Attributes:
        ca: the CA.
        name: the device's name.
        ak: its attestation key.
        certified: whether the CA certified that.
        resets: how often its TPM was reset.
    """

    ca: DeviceCa
    name: str = "sensor-17"
    ak: AttestationKey = field(default_factory=software_key)
    certified: bool = True
    resets: int = 0
    milliseconds: int = 1000

    def __post_init__(self) -> None:
        """Enrolls it."""
        self.tpm = TpmIdentity(hashlib.sha256(self.name.encode()).digest())
        self.identity: Identity = self.ca.device(self.name, names=[x509.DNSName(self.name), *self.tpm.names()])

    def attest(self, port: int, boot: Boot | None = None, **members: Any) -> dict[str, Any]:  # noqa: ANN401 - of the message
        """Shows the backend at ``port`` a quote of ``boot``, made after another reset, and returns its verdict."""
        client = HttpsClient(port, self.identity)
        try:
            nonce = base64.b64decode(client.post("/attestation/nonce", b"{}").body["nonce"])
            answer = client.post("/attestation", encode(self.evidence(nonce, boot or boot_of(), **members)))
        finally:
            client.close()
        assert answer.status == 200, answer
        verdict: dict[str, Any] = answer.body
        return verdict

    def evidence(self, nonce: bytes, boot: Boot, **members: Any) -> msgspec.Struct:  # noqa: ANN401 - of the message
        """A quote of ``boot``; members of the message may be replaced."""
        self.resets += 1
        self.milliseconds += 60_000
        clock = self.milliseconds.to_bytes(8) + self.resets.to_bytes(4) + bytes(4) + b"\1"
        found = made_evidence(self.ak, boot.values, nonce=nonce, attest={"clock": clock})
        certificate = self._certificate() if self.certified else None
        return msgspec.structs.replace(found, **({"certificate": certificate, "event_log": boot.log} | members))

    def _certificate(self) -> bytes:
        key = self.ak.key.public_key()
        return self.ca.certify_attestation_key(key, self.tpm, self.name).public_bytes(Encoding.DER)
