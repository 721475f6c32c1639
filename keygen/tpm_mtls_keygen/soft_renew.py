"""Renewal of an identity without a TPM: as `tpm_mtls_keygen.renew`, with a software key and without evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.certificates import certificates_pem, load_certificates
from tpm_mtls.device_requests import DeviceTransport
from tpm_mtls.files import check_private
from tpm_mtls.identity import CERTIFICATE, KEY, TRUST, Identity, load_identity
from tpm_mtls.tls import trust_context
from tpm_mtls_keygen import trial
from tpm_mtls_keygen.est_client import EstClient, EstExchange, Shown
from tpm_mtls_keygen.first_boot_folder import remove_leftovers
from tpm_mtls_keygen.first_boot_settings import Outcome, World
from tpm_mtls_keygen.install import Installation, begin, complete_without_tpm, load_installation
from tpm_mtls_keygen.issued import check_issued, check_stored, due_at, explained_expiry
from tpm_mtls_keygen.software_key import SoftwareKey, make_software_key, read_software_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_keygen.renew_settings import Settings


def renew_soft(settings: Settings, world: World, record: IdentityRecord) -> Outcome:
    """Renews the identity ``record`` in the folder, which the caller has locked.

    Raises:
        TpmMtlsError: as `tpm_mtls_keygen.renew.renew`; the old identity stays as it is.
    """
    folder = settings.folder
    begun = load_installation(folder)
    if begun is not None:
        world.tell("finishing a change of the identity that was interrupted")
        complete_without_tpm(folder, begun)
    remove_leftovers(folder)
    key = check_soft_identity(folder, record, world)
    leaf, *issuers = load_certificates(folder / CERTIFICATE)
    if settings.only_if_due and world.now() < due_at(leaf):
        rotated = begun is not None and begun.key is not None
        return Outcome(record, changed=begun is not None, rotated=rotated)
    world.tell(f"asking the CA at {record.ca_url} for another certificate for {record.device}")
    attempts = world.patience.start(waiting=waiting(world))
    client = EstClient(record.ca_url, trust_context(folder / TRUST))
    if settings.rotate_key:
        world.tell("making a new software key")
        key = make_software_key()
    request = key.request(record.device)
    as_device = _exchange(client, load_identity(folder))
    answer = attempts.until_done(lambda: as_device.reenroll(request, Shown(), now=world.now()))
    anchors = load_certificates(folder / TRUST)
    chain = check_issued(answer, issuers, anchors, public_key=key.spki, device=record.device, now=world.now())
    certificates = certificates_pem(chain)
    if settings.rotate_key:
        world.tell("trying the new key and its certificate with the CA")
        with trial.on_trial(folder, key.to_pem(), certificates) as identity:
            as_new = _exchange(client, identity)
            attempts.until_done(lambda: trial.attempt(as_new, now=world.now()))
    installation = Installation(
        record=record, certificates=certificates, key=key.to_pem() if settings.rotate_key else None, mirror=False
    )
    begin(folder, installation)
    complete_without_tpm(folder, installation)
    return Outcome(record, changed=True, rotated=settings.rotate_key)


def check_soft_identity(folder: Path, record: IdentityRecord, world: World) -> SoftwareKey:
    """The key of the identity ``record``, with which certificate and trust in ``folder`` were checked.

    Raises:
        StorageError: the key is gone, or others can read it.
        IdentityError, CredentialError: as `check_stored`.
    """
    check_private(folder / KEY)
    key = read_software_key(folder / KEY)
    with explained_expiry(folder):
        check_stored(folder, public_key=key.spki, now=world.now(), device=record.device)
    return key


def waiting(world: World) -> Callable[[TpmMtlsError, float], None]:
    """Tells why it waits, and for how long."""
    return lambda reason, delay: world.tell(f"{reason}; trying again in {delay:.0f} s")


def _exchange(client: EstClient, identity: Identity) -> EstExchange:
    return EstExchange(client.url, DeviceTransport(client.url.server, identity))
