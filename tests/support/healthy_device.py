"""A device as an enrollment leaves it: keys in a simulated TPM, a certificate, an identity folder; and its health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import load_der_public_key

from support.attestation_keys import enroll_attestation_key
from support.certificates import TestCa
from tpm_mtls.files import PRIVATE_FILE, make_folder, write_atomic
from tpm_mtls.identity import CERTIFICATE, KEY, IdentityRecord, save_record
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyDocument
from tpm_mtls.policy.files import write_policy
from tpm_mtls.structures import KeyAlgorithm, Tss2Key
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_agent.health import Authorizations, check_health, load_health, publish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion

HANDLE = 0x81000100
NOW = 1_795_312_800


class Device:
    """See the module's docstring.

    Attributes:
        folder: the identity folder.
        run_dir: where its health is published.
        ledger: where a check writes down what it has loaded.
    """

    def __init__(
        self,
        tpm: SimulatedTpm,
        root: Path,
        *,
        algorithm: KeyAlgorithm = KeyAlgorithm.ECC_P256,
        persistent: bool = True,
        policy: Sequence[Assertion] = (),
        authorization: Secret | None = None,
    ) -> None:
        self.tpm = tpm
        self.folder = root / "state"
        self.run_dir = root / "run"
        self.ledger = root / "loaded.json"
        self.authorizations = Authorizations(key=authorization)
        self._ca = TestCa(root)
        make_folder(self.folder)
        enroll_attestation_key(tpm, self.folder)
        digest = policy_digest(policy) if policy else b""
        with open_tpm(tpm.tcti) as opened:
            with opened.srk.create_key(algorithm, authorization=authorization, policy=digest) as key:
                self.public = key.public
                self._private = key.private
                if persistent:
                    opened.persist(key, HANDLE)
            srk, facts = opened.srk.ensure(), opened.facts()
        pem = Tss2Key(self.public, self._private, parent=SRK_HANDLE, empty_auth=authorization is None).to_pem()
        if not persistent:
            write_atomic(self.folder / KEY, pem, mode=PRIVATE_FILE)
        if policy:
            write_policy(self.folder, PolicyDocument(name=self.public.name.hex(), policy=tuple(policy)))
        self.certify(self.public.spki or b"")
        self.record = IdentityRecord(
            device="sensor-17",
            key=f"handle:{HANDLE:#010x}" if persistent else KEY,
            algorithm=str(algorithm),
            key_name=self.public.name.hex(),
            srk_name=srk.name.hex(),
            tpm_vendor=facts.vendor,
            tpm_firmware=facts.firmware,
            reset_count=facts.reset_count,
            ca_url="https://ca.example",
            enrolled_by="token",
        )
        save_record(self.folder, self.record)

    def certify(self, spki: bytes) -> None:
        """Puts a certificate for the public key ``spki`` in its place."""
        issued = self._ca.certify(load_der_public_key(spki), "sensor-17")  # type: ignore[arg-type]  # EC or RSA
        write_atomic(self.folder / CERTIFICATE, issued.read_bytes())

    def check(self, tcti: str | None = None) -> HealthReport:
        """One health check, published."""
        report = check_health(
            tcti or self.tpm.tcti,
            self.folder,
            authorizations=self.authorizations,
            ledger=self.ledger,
            now=lambda: NOW,
        )
        publish(self.run_dir, report)
        assert load_health(self.run_dir) == report
        return report

    def failing(self, tcti: str | None = None) -> dict[str, str]:
        """The failure classes that one check finds, and the reasons; the file says the same."""
        found = {each.kind: each.reason for each in self.check(tcti).failures}
        assert self.maintenance() == [f"{kind}: {reason}" for kind, reason in found.items()]
        return found

    def warned(self) -> list[str]:
        """The kinds of what one check warns of."""
        return [each.kind for each in self.check().warnings]

    def maintenance(self) -> list[str]:
        """The lines of the file ``maintenance``; none where it is not there."""
        path = self.run_dir / "maintenance"
        return path.read_text().splitlines() if path.exists() else []

    def persist_again(self) -> None:
        """Puts the TLS key back at its handle."""
        with (
            open_tpm(self.tpm.tcti) as opened,
            opened.load(SRK_HANDLE, self.public, self._private, None) as key,
        ):
            opened.persist(key, HANDLE)
