"""Renewal: another certificate for the same device, from the CA that issued the present one; with or without a new key.

The evidence is collected anew, as at the first boot; then the request goes to the CA over TLS with the present key and
certificate. What comes back is installed so that a power cut leaves the old identity or the new one
(`tpm_mtls_keygen.install`). A new key takes the place of the old one, at the same handle or in the same file, once TLS
with the CA has worked with it (`tpm_mtls_keygen.trial`): who names the key by its reference finds the new one there.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.attestation_key import AttestationKey, load_attestation_key
from tpm_mtls.authorization import read_authorization
from tpm_mtls.certificates import certificates_pem, load_certificates, parse_csr, spki
from tpm_mtls.device_requests import DeviceTransport
from tpm_mtls.errors import HandleOccupiedError, IdentityError
from tpm_mtls.identity import CERTIFICATE, TRUST, load_identity, load_record
from tpm_mtls.policy.files import find_policy
from tpm_mtls.policy.new_policy import NewPolicy
from tpm_mtls.structures import KeyAlgorithm, Tss2Key
from tpm_mtls.tls import trust_context
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_keygen import trial
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.est_client import EstClient, EstExchange, Shown
from tpm_mtls_keygen.first_boot import check_enrolled
from tpm_mtls_keygen.first_boot_folder import JOURNAL, locate, locked, remove_leftovers
from tpm_mtls_keygen.first_boot_observe import ask_tpm, read_folder
from tpm_mtls_keygen.first_boot_settings import Outcome, World
from tpm_mtls_keygen.identity_tcti import identity_tcti
from tpm_mtls_keygen.install import Installation, begin, complete, load_installation
from tpm_mtls_keygen.issued import check_issued, due_at, explained_expiry, find_attestation_certificate
from tpm_mtls_keygen.keys import TpmKey, load_key
from tpm_mtls_keygen.nv_mirror import find_place
from tpm_mtls_keygen.patience import Later
from tpm_mtls_keygen.proof import Proof
from tpm_mtls_keygen.soft_renew import renew_soft
from tpm_mtls_keygen.trial import on_trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cryptography import x509

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.identity import Identity, IdentityRecord
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.renew_settings import Settings


def renew(settings: Settings, world: World) -> Outcome:
    """Renews the identity in the folder.

    Raises:
        IdentityError: there is none, it is unfinished, or of another device.
        CertificateExpiredError: the present certificate has ended, and cannot vouch for anything any more.
        RequestRefusedError: the CA refuses, or wants to be asked later.
        TpmMtlsError: of the other classes, as first boot; the old identity stays as it is.
    """
    waiting = f"another first boot or renewal is at work in {settings.folder}: waiting for it"
    if not settings.folder.exists():
        raise _no_identity(settings.folder)
    with locked(settings.folder, waiting=lambda: world.tell(waiting)):
        record = load_record(settings.folder)
        if record is not None and not record.is_tpm:
            return renew_soft(settings, world, record)
        return _Renewal(settings, world).run()


@dataclass(frozen=True)
class _Request:
    """A request and what belongs to it.

    Attributes:
        csr: DER.
        cookies: by which the CA knows which nonce it answers.
        shown: what the CA is shown besides the present certificate.
        key: the new key, if there is one.
        attestation_key: the one that vouched, if there is evidence.
    """

    csr: bytes
    cookies: tuple[str, ...]
    shown: Shown
    key: Tss2Key | None
    attestation_key: AttestationKey | None


class _Renewal:
    """One run."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings = settings
        self.world = world
        self.folder = settings.folder
        self.attempts = world.patience.start(waiting=self._waiting)
        self.authorization = read_authorization(settings.auth)
        self.new_key: Tss2Key | None = None
        self.undo = ExitStack()

    def run(self) -> Outcome:
        with self._open_tpm() as tpm:
            if (begun := load_installation(self.folder)) is not None:
                self.world.tell("finishing a change of the identity that was interrupted")
                complete(tpm, self.folder, begun)
            record = self._check(tpm)
        remove_leftovers(self.folder)
        leaf, *_ = load_certificates(self.folder / CERTIFICATE)
        if self.settings.only_if_due and self.world.now() < due_at(leaf):
            return Outcome(record, changed=begun is not None, rotated=begun is not None and begun.key is not None)
        self.world.tell(f"asking the CA at {record.ca_url} for another certificate for {record.device}")
        with self.undo:  # a failure leaves no policy of a key that nobody has
            request, answer = self.attempts.until_done(lambda: self._attempt(record))
            with self._open_tpm() as tpm:
                installation = self._make_installation(tpm, record, request, answer)
            if installation.key is not None:
                self._try_new_key(installation.key, installation)
        with self._open_tpm() as tpm:
            begin(self.folder, installation)
            complete(tpm, self.folder, installation)
        return Outcome(installation.record, changed=True, rotated=installation.key is not None)

    def _open_tpm(self) -> AbstractContextManager[Tpm]:
        settings = self.settings
        return open_tpm(
            identity_tcti(settings.tcti, self.folder),
            owner_authorization=settings.owner_authorization,
            srk_authorization=settings.srk_authorization,
            endorsement_authorization=settings.endorsement_authorization,
        )

    def _check(self, tpm: Tpm) -> IdentityRecord:
        """The identity must be whole and this device's own: nothing else is worth a certificate."""
        facts = read_folder(self.folder)
        if facts.record is None:
            raise _no_identity(self.folder)
        if facts.journal is not None:
            raise IdentityError(
                f"the first boot in {self.folder} is not finished ({JOURNAL})", hint="run: tpm-mtls keygen first-boot"
            )
        with explained_expiry(self.folder):
            check_enrolled(ask_tpm(tpm, self.folder, facts, now=self.world.now(), anchors=None), facts.record)
        return facts.record

    def _attempt(self, record: IdentityRecord) -> tuple[_Request, tuple[x509.Certificate, ...]] | Later:
        """One request; the TPM is closed again when the child that sends it opens it."""
        client = EstClient(record.ca_url, trust_context(self.folder / TRUST))
        with self._open_tpm() as tpm, client.exchange() as exchange:
            request = self._make_request(tpm, exchange, record)
        if isinstance(request, Later):
            return request
        as_device = self._exchange(client, load_identity(self.folder), cookies=request.cookies)
        answer = as_device.reenroll(request.csr, request.shown, now=self.world.now())
        return answer if isinstance(answer, Later) else (request, answer)

    def _make_request(self, tpm: Tpm, exchange: EstExchange, record: IdentityRecord) -> _Request | Later:
        if self.settings.rotate_key and self.new_key is None:
            self.world.tell(f"making a new key in the TPM: {record.algorithm}")
            self.new_key = self._make_key(tpm, record)
        known = load_attestation_key(self.folder) if record.enrolled_by == "tpm" else None
        if known is None:
            key = self._load_key(tpm, record)
            with key.loaded:
                csr: bytes | Later = build_csr(tpm, key, common_name=record.device)
            advice = None
        else:
            proof = Proof.prepare(tpm, known)
            now = self.world.now()
            csr = proof.request(tpm, exchange, lambda: self._load_key(tpm, record), common_name=record.device, now=now)
            advice = proof.advice
        if isinstance(csr, Later):
            return csr
        return _Request(csr, exchange.cookies, Shown(advice=advice), self.new_key, known)

    def _make_key(self, tpm: Tpm, record: IdentityRecord) -> Tss2Key:
        """A key with the policy of the present one."""
        present = find_policy(bytes.fromhex(record.key_name), [self.folder])
        policy = NewPolicy(self.folder, present.policy) if present else None
        digest = policy.digest if policy else b""
        algorithm, empty = KeyAlgorithm(record.algorithm), self.authorization is None
        with tpm.srk.create_key(algorithm, authorization=self.authorization, policy=digest) as loaded:
            if policy is not None:
                self.undo.enter_context(policy.written(loaded.public.name))
            return Tss2Key(loaded.public, loaded.private, parent=SRK_HANDLE, empty_auth=empty)

    def _load_key(self, tpm: Tpm, record: IdentityRecord) -> TpmKey:
        """The key that the new certificate is for."""
        reference = locate(self.folder, record.key)
        if self.new_key is None:
            return load_key(tpm, reference, authorization=self.authorization)
        new = self.new_key
        return TpmKey(reference, tpm.load(new.parent, new.public, new.private, self.authorization))

    def _make_installation(
        self, tpm: Tpm, record: IdentityRecord, request: _Request, answer: Sequence[x509.Certificate]
    ) -> Installation:
        anchors = load_certificates(self.folder / TRUST)
        _, *issuers = load_certificates(self.folder / CERTIFICATE)
        public_key = spki(parse_csr(request.csr).public_key())
        now = self.world.now()
        chain = check_issued(answer, issuers, anchors, public_key=public_key, device=record.device, now=now)
        attestation_key = request.attestation_key
        if attestation_key is not None:
            certified = find_attestation_certificate(answer, [*chain[1:], *anchors], attestation_key.area.spki or b"")
            attestation_key = msgspec.structs.replace(
                attestation_key, certificate=certified or attestation_key.certificate
            )
        key = request.key
        return Installation(
            record=msgspec.structs.replace(record, key_name=key.public.name.hex()) if key else record,
            certificates=certificates_pem(chain),
            key=key.to_pem() if key else None,
            replaces=record.key_name if key else None,
            attestation_key=attestation_key,
            mirror=self._has_mirror(tpm),
        )

    def _try_new_key(self, key: bytes, installation: Installation) -> None:
        """Raises unless TLS with the CA works with the new key and its certificate; nothing is replaced before that."""
        self.world.tell("trying the new key and its certificate with the CA")
        client = EstClient(installation.record.ca_url, trust_context(self.folder / TRUST))
        with on_trial(self.folder, key, installation.certificates) as identity:
            as_new = self._exchange(client, identity)
            self.attempts.until_done(lambda: trial.attempt(as_new, now=self.world.now()))

    def _exchange(self, client: EstClient, identity: Identity, *, cookies: Sequence[str] = ()) -> EstExchange:
        """Requests as the device, in a child; nobody may have the TPM open here meanwhile."""
        transport = DeviceTransport(client.url.server, identity, self.settings.tcti, self.authorization)
        return EstExchange(client.url, transport, cookies=cookies)

    def _has_mirror(self, tpm: Tpm) -> bool:
        with suppress(HandleOccupiedError):
            return find_place(tpm, self.folder).mirror is not None
        return False

    def _waiting(self, reason: TpmMtlsError, delay: float) -> None:
        self.world.tell(f"{reason}; trying again in {delay:.0f} s")


def _no_identity(folder: Path) -> IdentityError:
    return IdentityError(f"there is no identity in {folder} to renew", hint="enroll: tpm-mtls keygen first-boot")
