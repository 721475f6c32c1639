"""A device that is well, until a test breaks something; and machines with whatever device nodes a test wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from support.healthy_device import Device
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.doctor.diagnosis import Settings, diagnose
from tpm_mtls.doctor.machine import Places
from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.identity import CERTIFICATE, KEY, TRUST, save_record
from tpm_mtls.tls import ClientCertificates, server_context

if TYPE_CHECKING:
    import ssl

    from support.certificates import TestCa
    from support.tpm import SimulatedTpm
    from tpm_mtls.doctor.diagnosis import Diagnosis
    from tpm_mtls.doctor.findings import Finding

NOBODY_LISTENS = "https://127.0.0.1:9"


def utc_now() -> datetime:
    return datetime.now(UTC)


class Patient:
    """An enrolled device, as the doctor finds it well.

    Attributes:
        device: key in a simulated TPM, certificate and identity folder.
        folder: the identity folder.
        ca: who issued the certificate.
    """

    def __init__(self, tpm: SimulatedTpm, root: Path, **device: Any) -> None:  # noqa: ANN401 - as Device's
        self.device = Device(tpm, root, **device)
        self.folder = self.device.folder
        self.ca: TestCa = self.device._ca
        write_atomic(self.folder / TRUST, self.ca.trust.read_bytes())
        known = load_attestation_key(self.folder)
        self.change_record(ca_url=NOBODY_LISTENS, ek_sha256=known.ek_sha256 if known else None)

    def change_record(self, **fields: Any) -> None:  # noqa: ANN401 - as msgspec's
        self.device.record = msgspec.structs.replace(self.device.record, **fields)
        save_record(self.folder, self.device.record)

    def make_software(self) -> None:
        """As ``first-boot --no-tpm=soft`` leaves a device."""
        identity = self.ca.software_identity("sensor-17")
        write_atomic(self.folder / KEY, Path(str(identity.key)).read_bytes(), mode=PRIVATE_FILE)
        write_atomic(self.folder / CERTIFICATE, identity.certificate.read_bytes())
        nothing = {"key_name": "", "srk_name": "", "ek_sha256": None, "tpm_vendor": "", "tpm_firmware": ""}
        self.change_record(is_tpm=False, key=KEY, reset_count=0, **nothing)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The device's."""
        key = load_der_public_key(self.device.public.spki or b"")
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def server_context(self, *, ca: TestCa | None = None) -> ssl.SSLContext:
        """For a server that ``ca``, if not the device's own, has certified; it takes the own CA's devices only."""
        identity = (ca or self.ca).software_identity("localhost")
        trusting = type(identity)(identity.key, identity.certificate, self.ca.trust)
        return server_context(trusting, client_certificates=ClientCertificates.OPTIONAL)

    def examine(self, **settings: Any) -> Diagnosis:  # noqa: ANN401 - fields of Settings, and the clock
        now = settings.pop("now", utc_now)
        return diagnose(Settings(**{"tcti": self.device.tpm.tcti, "folder": self.folder} | settings), now=now)

    def cause(self, **settings: Any) -> Finding:  # noqa: ANN401 - as examine
        """The first problem: the one that the command's error names."""
        return self.examine(**settings).problems[0]


@dataclass
class FakeMachine:
    """Folders like ``/dev``, ``/sys`` and ``/run``; ``/proc`` is the real one.

    Attributes:
        root: where they are.
        nodes: names and permission bits of device nodes.
        version: what the kernel says of the chip; none if it has found none.
        may_open: whether the user may open the nodes.
    """

    root: Path
    nodes: dict[str, int] = field(default_factory=lambda: {"tpm0": 0o600, "tpmrm0": 0o660})
    version: str | None = "2"
    may_open: bool = True

    def __post_init__(self) -> None:
        self.dev, self.sys, self.run = (self.root / name for name in ("dev", "sys", "run"))
        for folder in (self.dev, self.sys / "class" / "tpm", self.run):
            folder.mkdir(parents=True)
        for name, mode in self.nodes.items():
            (self.dev / name).touch()
            (self.dev / name).chmod(mode)
        if self.version is not None:
            chip = self.sys / "class" / "tpm" / "tpm0"
            chip.mkdir()
            (chip / "tpm_version_major").write_text(f"{self.version}\n")

    @property
    def tcti(self) -> str:
        return f"device:{self.dev}/tpmrm0"

    @property
    def places(self) -> Places:
        return Places(
            dev=self.dev,
            sys=self.sys,
            proc=Path("/proc"),
            run=self.run,
            may_open=lambda _: self.may_open,
            is_device=Path.exists,
        )
