"""Brings a lost certificate file back from the copy of the identity in the TPM's NV memory, and changes nothing else.

Where ``identity.json`` is lost, too, it is `tpm_mtls_keygen.first_boot` that brings the whole identity back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tpm_mtls.certificates import certificates_pem
from tpm_mtls.errors import IdentityError
from tpm_mtls.files import write_atomic
from tpm_mtls.identity import CERTIFICATE, TRUST
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.first_boot import check_enrolled
from tpm_mtls_keygen.first_boot_copy import check_copy
from tpm_mtls_keygen.first_boot_folder import locked, remove_leftovers
from tpm_mtls_keygen.first_boot_observe import ask_tpm, read_folder
from tpm_mtls_keygen.first_boot_settings import Outcome, World
from tpm_mtls_keygen.identity_tcti import identity_tcti
from tpm_mtls_keygen.install import complete, load_installation
from tpm_mtls_keygen.issued import load_stored
from tpm_mtls_keygen.nv_mirror import find_place

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.tpm import Tpm

_ELSE = "restore it from a backup; or move the folder away and enroll anew: tpm-mtls keygen first-boot --new-identity"


def restore(folder: Path, tcti: str | None, world: World) -> Outcome:
    """Writes ``device.cert.pem`` of ``folder`` again if it is gone; the TPM is not asked where it is there.

    1. The folder's identity is a TPM's, and its key is there.
    2. The NV memory has a copy for this folder, of this device and key.
    3. The copy's certificate is for that key and valid, and leads to a trust anchor in the folder, which is never taken
       from the copy.

    Raises:
        IdentityError: 1 or 2 failed, or there is no trust anchor.
        CredentialError: 3 failed.
        TpmUnavailableError, TpmRefusedError: the TPM does not answer, or refuses.
        StorageError: a file cannot be read or written.
    """
    waiting = f"another first boot or renewal is at work in {folder}: waiting for it"
    if not folder.exists():
        raise _nothing(folder)
    with locked(folder, waiting=lambda: world.tell(waiting)):
        begun, record = load_installation(folder), read_folder(folder).record
        if record is None:
            raise _nothing(folder)
        if begun is None and (folder / CERTIFICATE).exists():
            return Outcome(record, changed=False)
        if not record.is_tpm:
            raise IdentityError(f"the identity in {folder} is not a TPM's: nobody has a copy", hint=_ELSE)
        remove_leftovers(folder)
        with open_tpm(identity_tcti(tcti, folder)) as tpm:
            if begun is not None:
                world.tell("finishing a change of the identity that was interrupted")
                complete(tpm, folder, begun)
                return Outcome(begun.record, changed=True)
            world.tell(f"bringing back the certificate of {record.device} from the TPM's NV memory")
            chain = _chain(tpm, folder, record, world)
            write_atomic(folder / CERTIFICATE, certificates_pem(chain))
    return Outcome(record, changed=True, restored=True)


def _chain(tpm: Tpm, folder: Path, record: IdentityRecord, world: World) -> tuple[x509.Certificate, ...]:
    now = world.now()
    facts = ask_tpm(tpm, folder, read_folder(folder), now=now, anchors=None)
    check_enrolled(replace(facts, certificate_error=None), record)  # 1: that it has no certificate is known
    mirror = find_place(tpm, folder).mirror  # 2
    if mirror is None:
        raise IdentityError(f"the TPM's NV memory has no copy of the identity in {folder}", hint=_ELSE)
    if (mirror.record.device, mirror.record.key_name) != (record.device, record.key_name):
        raise IdentityError(f"the TPM's NV memory has a copy of another identity for {folder}", hint=_ELSE)
    anchors = load_stored(folder, TRUST)
    return check_copy(tpm, mirror, srk_name=facts.srk_name, now=now, anchors=anchors)  # 3


def _nothing(folder: Path) -> IdentityError:
    return IdentityError(
        f"there is no identity in {folder} whose certificate could be restored",
        hint="first-boot brings a whole identity back: tpm-mtls keygen first-boot --help",
    )
