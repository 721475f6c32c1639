"""First boot, done: observes what is there, and takes the steps of `tpm_mtls_keygen.first_boot` until it is enrolled.

outcome = run(Settings(folder, "https://ca.example:8443", token_file, trust), World())
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.attestation_key import load_attestation_key, save_attestation_key
from tpm_mtls.authorization import read_authorization
from tpm_mtls.certificates import certificates_pem, load_certificates
from tpm_mtls.device_names import device_name
from tpm_mtls.files import PRIVATE_FILE, make_folder, remove_file, storage_errors, write_atomic
from tpm_mtls.identity import CERTIFICATE, KEY, TRUST, IdentityRecord, save_record
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.policy.files import policy_path
from tpm_mtls.policy.new_policy import check_usable, make_policy
from tpm_mtls.structures import Tss2Key
from tpm_mtls.tls import trust_context
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_keygen.application import Application
from tpm_mtls_keygen.attestation_key import make_attestation_key
from tpm_mtls_keygen.bootstrap_token import BootstrapToken, read_token
from tpm_mtls_keygen.est_client import EstClient
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.first_boot import check_is_tpm, next_step
from tpm_mtls_keygen.first_boot_copy import check_copy, forget, restore, write_copy
from tpm_mtls_keygen.first_boot_folder import JOURNAL, Journal, locate, locked, remove_leftovers, save_journal
from tpm_mtls_keygen.first_boot_observe import ask_tpm, certificate_error, look_for_copy, read_folder
from tpm_mtls_keygen.first_boot_settings import Outcome, Settings, World
from tpm_mtls_keygen.first_boot_steps import (
    ContactCa,
    Copy,
    Done,
    Enroll,
    Facts,
    Forget,
    MakeAttestationKey,
    MakeKey,
    MakeStorageKey,
    Record,
    Restore,
)
from tpm_mtls_keygen.identity_tcti import identity_tcti
from tpm_mtls_keygen.install import complete, load_installation
from tpm_mtls_keygen.issued import check_issued, find_attestation_certificate
from tpm_mtls_keygen.keys import TpmKey, load_key
from tpm_mtls_keygen.proof import Proof

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cryptography import x509

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.policy.new_policy import NewPolicy
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.evidence import Endorsement
    from tpm_mtls_keygen.first_boot_steps import KeyPlan, Step


def run(settings: Settings, world: World) -> Outcome:
    """Brings the device to where it has a key in its TPM and a certificate for it; does nothing where it has.

    Whatever interrupts it, the next run goes on from there. Two runs for one folder take turns.

    Raises:
        TpmMtlsError: of every class of the table but `OpensslError`; what was done stays, in the state that
            `tpm_mtls_keygen.first_boot` describes.
    """
    with storage_errors(settings.folder, "open"):
        exists = settings.folder.exists()
    if not exists:
        make_folder(settings.folder)
    waiting = f"another first boot is at work in {settings.folder}: waiting for it"
    with locked(settings.folder, waiting=lambda: world.tell(waiting)):
        return _FirstBoot(settings, world).run()


class _FirstBoot:
    """One run."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings = settings
        self.world = world
        self.folder = settings.folder
        self.wish = replace(settings.wish, evidence=settings.wish.evidence or settings.token_file is None)
        self.attempts = world.patience.start(waiting=self._waiting)
        self.ca: tuple[x509.Certificate, ...] = ()
        self.made: TpmKey | None = None
        self.endorsement: Endorsement | None = None
        self.restored = False

    @cached_property
    def token(self) -> BootstrapToken | None:
        file = self.settings.token_file
        return None if file is None else read_token(file, device=self.settings.device)

    @cached_property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        return load_certificates(self.settings.trust)

    @cached_property
    def est(self) -> EstClient:
        return EstClient(self.settings.ca_url, trust_context(self.settings.trust))

    def run(self) -> Outcome:
        facts = read_folder(self.folder)
        if facts.record is not None:
            check_is_tpm(facts.record, self.folder)
        if facts.record is None:
            make_folder(self.folder)  # checks that it may be written to
            _ = self.anchors, self.est  # what is missing is told before the TPM is touched
        remove_leftovers(self.folder)
        changed = False
        with self._open_tpm() as tpm:
            if (begun := load_installation(self.folder)) is not None:
                self.world.tell("finishing a change of the identity that was interrupted")
                complete(tpm, self.folder, begun)
                changed = True
            facts = self._observe(tpm)
            while not isinstance(step := next_step(facts, self.wish), Done):
                facts = self._take(step, tpm, facts)
                changed = True
        return Outcome(step.record, changed=changed, restored=self.restored)

    def _open_tpm(self) -> AbstractContextManager[Tpm]:
        settings = self.settings
        return open_tpm(
            identity_tcti(settings.tcti, self.folder, policy=settings.policy is not None),
            owner_authorization=settings.owner_authorization,
            srk_authorization=settings.srk_authorization,
            endorsement_authorization=settings.endorsement_authorization,
        )

    def _observe(self, tpm: Tpm) -> Facts:
        facts, now = read_folder(self.folder), self.world.now()
        if facts.record is not None:
            return ask_tpm(tpm, self.folder, facts, now=now, anchors=None)
        facts = ask_tpm(tpm, self.folder, facts, now=now, anchors=self.anchors)
        if not self.wish.copy:
            return facts
        return look_for_copy(tpm, self.folder, facts, now=now, anchors=self.anchors)

    def _take(self, step: Step, tpm: Tpm, facts: Facts) -> Facts:
        match step:
            case ContactCa():
                return self._contact_ca(facts)
            case MakeKey(plan, srk_name):
                return self._make_key(tpm, facts, plan, srk_name)
            case Record(journal, srk_name):
                return replace(facts, record=self._record(tpm, journal, srk_name))
            case Enroll(journal):
                self._enroll(tpm, journal)
                return replace(facts, certificate_error=None)
            case MakeStorageKey() | MakeAttestationKey():
                return self._make_other_key(step, tpm, facts)
            case _:
                return self._keep(step, tpm, facts)

    def _keep(self, step: Step, tpm: Tpm, facts: Facts) -> Facts:
        """The steps with the copy in the NV memory, and the last one."""
        match step:
            case Copy(record):
                self.world.tell("keeping a copy of the identity in the TPM's NV memory")
                write_copy(tpm, self.folder, record)
                return replace(facts, copied=True)
            case Restore(mirror):
                self.world.tell(f"bringing back the identity of {mirror.record.device} from the TPM's NV memory")
                now = self.world.now()
                chain = check_copy(tpm, mirror, srk_name=facts.srk_name, now=now, anchors=self.anchors)
                restore(tpm, self.folder, mirror, chain=chain, anchors=self.anchors)
                self.restored = True
                return replace(self._observe(tpm), copied=True)
            case Forget(mirror):
                self.world.tell(f"giving up the identity of {mirror.record.device} that the TPM remembers")
                forget(tpm, self.folder, mirror)
                return replace(facts, copy=None, copy_error=None, handles=frozenset(tpm.persistent_handles()))
            case _:  # Tidy: the loop ends at Done
                remove_file(self.folder / JOURNAL)
                return replace(facts, journal=None)

    def _contact_ca(self, facts: Facts) -> Facts:
        _ = self.token  # a missing one is told before anything is made
        self.world.tell(f"asking the CA at {self.est.url} for its certificates")
        self.ca = self.attempts.until_done(lambda: self.est.ca_certificates(now=self.world.now()))
        return replace(facts, ca_known=True)

    def _make_key(self, tpm: Tpm, facts: Facts, plan: KeyPlan, srk_name: str) -> Facts:
        """The journal first, then the key: see `tpm_mtls_keygen.first_boot`."""
        reference = KEY if plan.handle is None else str(PersistentHandle(plan.handle))
        self.world.tell(f"making the device key in the TPM: {plan.algorithm}, {reference}")
        authorization = read_authorization(self.settings.auth, confirm=True)
        policy = self._make_policy(tpm, with_authorization=authorization is not None)
        if facts.journal is not None:  # of a key that an interrupted run did not keep
            remove_file(policy_path(self.folder, bytes.fromhex(facts.journal.key_name)))
        digest = policy.digest if policy else b""
        loaded = tpm.srk.create_key(plan.algorithm, authorization=authorization, policy=digest)
        public = loaded.public
        journal = Journal(key=reference, algorithm=plan.algorithm, key_name=public.name.hex(), srk_name=srk_name)
        save_journal(self.folder, journal)
        with policy.written(public.name) if policy else nullcontext():
            if plan.handle is None:
                key = Tss2Key(public, loaded.private, parent=SRK_HANDLE, empty_auth=authorization is None)
                write_atomic(self.folder / KEY, key.to_pem(), mode=PRIVATE_FILE)
            else:
                tpm.persist(loaded, plan.handle)
        if self.wish.evidence:
            tpm.flush(loaded)  # first the CA is asked for a nonce
        else:
            self.made = TpmKey(locate(self.folder, reference), loaded)
        return replace(
            facts,
            journal=journal,
            key_name=journal.key_name,
            certificate_error=certificate_error(self.folder, public, None, now=self.world.now(), anchors=self.anchors),
        )

    def _make_policy(self, tpm: Tpm, *, with_authorization: bool) -> NewPolicy | None:
        wish, now = self.settings.policy, self.world.now()
        if wish is None:
            return None
        policy = make_policy(tpm, wish, self.folder, with_authorization=with_authorization, now=now)
        check_usable(tpm, policy)
        return policy

    def _make_other_key(self, step: MakeStorageKey | MakeAttestationKey, tpm: Tpm, facts: Facts) -> Facts:
        if isinstance(step, MakeStorageKey):
            self.world.tell("making the TPM's storage root key")
            return replace(facts, srk_name=tpm.srk.ensure().name.hex())
        self.world.tell("making the attestation key in the TPM")
        self.endorsement = endorsement = read_endorsement(tpm)
        if endorsement.certificate is None:
            self.world.tell(f"this TPM has no EK certificate; its EK hash is {endorsement.hash}")
        save_attestation_key(self.folder, make_attestation_key(tpm, endorsement))
        return replace(facts, has_attestation_key=True)

    def _enroll(self, tpm: Tpm, journal: Journal) -> None:
        name = self.token.device if self.token else self.settings.device
        known = load_attestation_key(self.folder) if self.wish.evidence else None
        how = ", on the evidence of its TPM" if known else ""
        self.world.tell(f"asking the CA for a certificate for {name or 'this device'}{how}")
        application = Application(
            tpm=tpm,
            est=self.est,
            token=self.token,
            name=name,
            proof=Proof.prepare(tpm, known, self.endorsement) if known else None,
            load_key=lambda: self._take_key(tpm, journal),
            now=self.world.now,
        )
        public_key, answer = self.attempts.until_done(application.attempt)
        chain = check_issued(answer, self.ca, self.anchors, public_key=public_key, device=name, now=self.world.now())
        if known is not None:
            issuers = [*chain[1:], *self.anchors]
            certificate = find_attestation_certificate(answer, issuers, known.area.spki or b"")
            save_attestation_key(self.folder, msgspec.structs.replace(known, certificate=certificate))
        write_atomic(self.folder / TRUST, certificates_pem(self.anchors))
        write_atomic(self.folder / CERTIFICATE, certificates_pem(chain))

    def _take_key(self, tpm: Tpm, journal: Journal) -> TpmKey:
        """The key, loaded: as it was made in this run, the first time, or once more."""
        made, self.made = self.made, None
        if made is not None:
            return made
        authorization = read_authorization(self.settings.auth)
        return load_key(tpm, locate(self.folder, journal.key), authorization=authorization)

    def _record(self, tpm: Tpm, journal: Journal, srk_name: str) -> IdentityRecord:
        leaf, *_ = load_certificates(self.folder / CERTIFICATE)
        known = load_attestation_key(self.folder)
        about = tpm.facts()
        record = IdentityRecord(
            device=device_name(leaf),
            key=journal.key,
            algorithm=journal.algorithm,
            key_name=journal.key_name,
            srk_name=srk_name,
            ek_sha256=known.ek_sha256 if known else None,
            tpm_vendor=about.vendor,
            tpm_firmware=about.firmware,
            reset_count=about.reset_count,
            ca_url=str(self.est.url),
            enrolled_by="tpm" if self.wish.evidence else "token",
        )
        save_record(self.folder, record)
        return record

    def _waiting(self, reason: TpmMtlsError, delay: float) -> None:
        self.world.tell(f"{reason}; trying again in {delay:.0f} s")
