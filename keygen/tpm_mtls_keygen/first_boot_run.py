"""First boot, done: observes what is there, and takes the steps of `tpm_mtls_keygen.first_boot` until it is enrolled.

outcome = run(Settings(folder, "https://ca.example:8443", token_file, trust), World())
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from tpm_mtls.authorization import read_authorization
from tpm_mtls.certificates import certificates_pem, device_name, load_certificates, parse_csr, spki
from tpm_mtls.files import PRIVATE_FILE, make_folder, remove_file, storage_errors, write_atomic
from tpm_mtls.identity import CERTIFICATE, KEY, TRUST, IdentityRecord, save_record
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.structures import Tss2Key
from tpm_mtls.tls import trust_context
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_keygen.bootstrap_token import BootstrapToken, read_token
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.est_client import EstClient
from tpm_mtls_keygen.first_boot import (
    ContactCa,
    Done,
    Enroll,
    Facts,
    MakeKey,
    MakeStorageKey,
    Record,
    Wish,
    next_step,
)
from tpm_mtls_keygen.first_boot_folder import JOURNAL, Journal, locate, locked, remove_leftovers, save_journal
from tpm_mtls_keygen.first_boot_observe import ask_tpm, certificate_error, read_folder
from tpm_mtls_keygen.issued import check_issued
from tpm_mtls_keygen.keys import TpmKey, load_key
from tpm_mtls_keygen.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cryptography import x509

    from tpm_mtls.authorization import Secret
    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.first_boot import KeyPlan, Step


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        folder: the identity folder.
        ca_url: the EST server.
        token_file: the bootstrap token; see `read_token`.
        trust: PEM file with the root certificates that the CA's chains must lead to.
        device: the device's name, where the token file does not say it.
        wish: which key.
        auth: where the key's authorization value is, if it is to have one; see `tpm_mtls.authorization`. Only a run
            that makes or uses the key reads it.
        tcti: where the TPM is; see `tpm_mtls.tcti.resolve_tcti`.
        owner_authorization: authorization value of the owner hierarchy, if it has one.
        srk_authorization: authorization value of the storage root key, if it has one.
    """

    folder: Path
    ca_url: str
    token_file: Path
    trust: Path
    device: str | None = None
    wish: Wish = field(default_factory=Wish)
    auth: str | None = None
    tcti: str | None = None
    owner_authorization: Secret | None = None
    srk_authorization: Secret | None = None


@dataclass(frozen=True)
class World:
    """Everything else that it depends on.

    Attributes:
        now: the clock by which certificates are judged.
        patience: how long to wait for the CA.
        tell: takes a line of progress.
    """

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    patience: Patience = field(default_factory=Patience)
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """How it ended well.

    Attributes:
        record: the device's identity.
        changed: false when it was enrolled already.
    """

    record: IdentityRecord
    changed: bool


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
        self.attempts = world.patience.start(waiting=self._waiting)
        self.ca: tuple[x509.Certificate, ...] = ()
        self.made: TpmKey | None = None

    @cached_property
    def token(self) -> BootstrapToken:
        return read_token(self.settings.token_file, device=self.settings.device)

    @cached_property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        return load_certificates(self.settings.trust)

    @cached_property
    def est(self) -> EstClient:
        return EstClient(self.settings.ca_url, trust_context(self.settings.trust))

    def run(self) -> Outcome:
        facts = read_folder(self.folder)
        if facts.record is None:
            self._check_inputs(facts)
            remove_leftovers(self.folder)
        changed = False
        with self._open_tpm() as tpm:
            anchors = None if facts.record else self.anchors
            facts = ask_tpm(tpm, self.folder, facts, now=self.world.now(), anchors=anchors)
            while not isinstance(step := next_step(facts, self.settings.wish), Done):
                facts = self._take(step, tpm, facts)
                changed = True
        return Outcome(step.record, changed=changed)

    def _open_tpm(self) -> AbstractContextManager[Tpm]:
        settings = self.settings
        return open_tpm(
            settings.tcti,
            owner_authorization=settings.owner_authorization,
            srk_authorization=settings.srk_authorization,
        )

    def _check_inputs(self, facts: Facts) -> None:
        """What is missing is told before the TPM is touched."""
        make_folder(self.folder)  # checks that it may be written to
        _ = self.anchors, self.est
        if CERTIFICATE not in facts.files:
            _ = self.token

    def _take(self, step: Step, tpm: Tpm, facts: Facts) -> Facts:
        match step:
            case ContactCa():
                self.world.tell(f"asking the CA at {self.est.url} for its certificates")
                self.ca = self.attempts.until_done(lambda: self.est.ca_certificates(now=self.world.now()))
                return replace(facts, ca_known=True)
            case MakeStorageKey():
                self.world.tell("making the TPM's storage root key")
                return replace(facts, srk_name=tpm.srk.ensure().name.hex())
            case MakeKey(plan, srk_name):
                return self._make_key(tpm, facts, plan, srk_name)
            case Enroll(journal):
                self._enroll(tpm, journal)
                return replace(facts, certificate_error=None)
            case Record(journal, srk_name):
                return replace(facts, record=self._record(tpm, journal, srk_name))
            case _:  # Tidy: the loop ends at Done
                remove_file(self.folder / JOURNAL)
                return replace(facts, journal=None)

    def _make_key(self, tpm: Tpm, facts: Facts, plan: KeyPlan, srk_name: str) -> Facts:
        """The journal first, then the key: see `tpm_mtls_keygen.first_boot`."""
        reference = KEY if plan.handle is None else str(PersistentHandle(plan.handle))
        self.world.tell(f"making the device key in the TPM: {plan.algorithm}, {reference}")
        authorization = read_authorization(self.settings.auth, confirm=True)
        loaded = tpm.srk.create_key(plan.algorithm, authorization=authorization)
        public = loaded.public
        journal = Journal(key=reference, algorithm=plan.algorithm, key_name=public.name.hex(), srk_name=srk_name)
        save_journal(self.folder, journal)
        if plan.handle is None:
            key = Tss2Key(public, loaded.private, parent=SRK_HANDLE, empty_auth=authorization is None)
            write_atomic(self.folder / KEY, key.to_pem(), mode=PRIVATE_FILE)
        else:
            tpm.persist(loaded, plan.handle)
        self.made = TpmKey(locate(self.folder, reference), loaded)
        return replace(
            facts,
            journal=journal,
            key_name=journal.key_name,
            certificate_error=certificate_error(self.folder, public, None, now=self.world.now(), anchors=self.anchors),
        )

    def _enroll(self, tpm: Tpm, journal: Journal) -> None:
        self.world.tell(f"asking the CA for a certificate for {self.token.device}")
        key = self.made or self._load_key(tpm, journal)
        with key.loaded:  # it does not stay loaded while the CA thinks
            csr = build_csr(tpm, key, common_name=self.token.device)
        answer = self.attempts.until_done(lambda: self.est.enroll(csr, self.token, now=self.world.now()))
        chain = check_issued(
            answer,
            self.ca,
            self.anchors,
            public_key=spki(parse_csr(csr).public_key()),
            device=self.token.device,
            now=self.world.now(),
        )
        write_atomic(self.folder / TRUST, certificates_pem(self.anchors))
        write_atomic(self.folder / CERTIFICATE, certificates_pem(chain))

    def _load_key(self, tpm: Tpm, journal: Journal) -> TpmKey:
        authorization = read_authorization(self.settings.auth)
        return load_key(tpm, locate(self.folder, journal.key), authorization=authorization)

    def _record(self, tpm: Tpm, journal: Journal, srk_name: str) -> IdentityRecord:
        leaf, *_ = load_certificates(self.folder / CERTIFICATE)
        about = tpm.facts()
        record = IdentityRecord(
            device=device_name(leaf),
            key=journal.key,
            algorithm=journal.algorithm,
            key_name=journal.key_name,
            srk_name=srk_name,
            tpm_vendor=about.vendor,
            tpm_firmware=about.firmware,
            reset_count=about.reset_count,
            ca_url=str(self.est.url),
            enrolled_by="token",
        )
        save_record(self.folder, record)
        return record

    def _waiting(self, reason: TpmMtlsError, delay: float) -> None:
        self.world.tell(f"{reason}; trying again in {delay:.0f} s")
