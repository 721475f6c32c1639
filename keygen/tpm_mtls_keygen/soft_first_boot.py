"""First boot where there is no TPM, for those who asked for that: ``first-boot --no-tpm=soft``.

The key is a P-256 key in a file that nobody else can read, and can be copied by whoever may. Only a token convinces the
CA; nothing vouches for the key, and the identity says so (`tpm_mtls.identity.IdentityRecord.is_tpm`). This way is open
only where there is no TPM at all, and never to a device that had a TPM: neither here, as far as the folder or the TPM's
NV memory remember it, nor at the CA, which remembers for good.

The order of the effects is first boot's: key, certificate, ``identity.json``. Interrupted, the next run goes on.
"""

from __future__ import annotations

from pathlib import Path

from tpm_mtls.certificates import certificates_pem, load_certificates
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import (
    HandleOccupiedError,
    IdentityError,
    TctiInvalidError,
    TpmUnavailableError,
    TpmVersionError,
    UsageError,
)
from tpm_mtls.files import PRIVATE_FILE, check_private, make_folder, storage_errors, write_atomic
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, TRUST, IdentityRecord, load_record, save_record
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import trust_context
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.bootstrap_token import read_token
from tpm_mtls_keygen.est_client import EstClient
from tpm_mtls_keygen.first_boot_folder import JOURNAL, locked, remove_leftovers
from tpm_mtls_keygen.first_boot_settings import Outcome, Settings, World
from tpm_mtls_keygen.install import complete_without_tpm, load_installation
from tpm_mtls_keygen.issued import check_issued
from tpm_mtls_keygen.nv_mirror import find_place
from tpm_mtls_keygen.soft_renew import check_soft_identity, waiting
from tpm_mtls_keygen.software_key import SoftwareKey, make_software_key, read_software_key

KERNEL = Path("/sys/class/tpm")
"""Where Linux describes the TPMs that it has a driver for."""


def run(settings: Settings, world: World, *, kernel: Path = KERNEL) -> Outcome | None:
    """Gives a device without a TPM its identity; none where that is the TPM's affair (`first_boot_run.run`).

    1. The folder's identity, or what was begun there, is a TPM's: the TPM's affair, and an error if that is not there.
    2. It is one without: it must be whole. Should there be a TPM after all that holds an identity: an error.
    3. There is no identity, and a TPM: the TPM's affair.
    4. There is neither: a software key is made and enrolled by token.

    Args:
        settings: as for first boot; the parts that are about the TPM's key must be empty in case 4.
        world: as for first boot.
        kernel: folder in which the kernel describes its TPM devices.

    Raises:
        IdentityError: 1 or 2.
        UsageError: 4, without a token, or something was asked for that a software key does not have.
        TpmUnavailableError: there is a TPM, but it may not be used or does not answer.
        TpmMtlsError: as `first_boot_run.run`.
    """
    folder = settings.folder
    with storage_errors(folder, "open"):
        if not folder.exists():
            make_folder(folder)
    message = f"another first boot is at work in {folder}: waiting for it"
    with locked(folder, waiting=lambda: world.tell(message)):
        begun = load_installation(folder)
        record = begun.record if begun else load_record(folder)
        if (record is not None and record.is_tpm) or (record is None and _began_with_tpm(folder)):  # 1
            if not has_tpm(settings.tcti, kernel=kernel):
                raise IdentityError(
                    f"{folder} holds the identity of a device with a TPM, and there is no TPM",
                    hint="its TPM must come back (ls /dev/tpm*); a software key never takes its place",
                )
            return None
        if record is not None:  # 2
            _check_tpm_remembers_nobody(settings)
            remove_leftovers(folder)
            if begun is not None:
                complete_without_tpm(folder, begun)
            check_soft_identity(folder, record, world)
            return Outcome(record, changed=begun is not None)
        return None if has_tpm(settings.tcti, kernel=kernel) else _enroll(settings, world)  # 3, 4


def has_tpm(tcti: str | None, *, kernel: Path = KERNEL) -> bool:
    """Whether there is a TPM 2.0 at ``tcti``.

    Raises:
        TctiInvalidError: ``tcti`` is none.
        TpmUnavailableError: the kernel knows of one, but it may not be used or does not answer.
        TpmRefusedError: it answers with an error.
    """
    try:
        with open_tpm(tcti) as tpm:
            tpm.facts()
    except TpmVersionError:
        return False
    except TctiInvalidError:
        raise
    except TpmUnavailableError as error:
        real = error.tcti.startswith(("device:", "tabrmd"))
        if real and kernel.exists() and any(kernel.iterdir()):
            error.hint = f"there is a TPM, so no software key takes its place; {error.hint}"
            raise
        return False
    return True


def _began_with_tpm(folder: Path) -> bool:
    names = (JOURNAL, ATTESTATION_KEY)
    key = folder / KEY
    return any((folder / name).exists() for name in names) or (key.exists() and KeyFile(key).is_tss2())


def _check_tpm_remembers_nobody(settings: Settings) -> None:
    """A TPM that is there after all, and may be used, holds no identity."""
    try:
        with open_tpm(settings.tcti) as tpm:
            place = find_place(tpm, settings.folder)
    except TctiInvalidError:
        raise
    except (TpmUnavailableError, HandleOccupiedError):
        return
    devices = [*([place.mirror.record.device] if place.mirror else []), *place.others]
    if devices:
        raise IdentityError(
            f"{settings.folder} has a software key, but this machine's TPM holds the identity of {devices[0]}",
            hint=f"move {settings.folder} away and run first-boot without --no-tpm: it brings that identity back",
        )


def _enroll(settings: Settings, world: World) -> Outcome:
    folder = settings.folder
    _check_wish(settings)
    if settings.token_file is None:
        raise UsageError("without a TPM only a token convinces the CA", hint="give it: --token-file FILE")
    token = read_token(settings.token_file, device=settings.device)
    anchors = load_certificates(settings.trust)
    est = EstClient(settings.ca_url, trust_context(settings.trust))
    remove_leftovers(folder)
    attempts = world.patience.start(waiting=waiting(world))
    world.tell(f"asking the CA at {est.url} for its certificates")
    ca = attempts.until_done(lambda: est.ca_certificates(now=world.now()))
    key = _key(folder, world)
    world.tell(f"asking the CA for a certificate for {token.device}")
    request = key.request(token.device)
    answer = attempts.until_done(lambda: est.enroll(request, token, now=world.now()))
    chain = check_issued(answer, ca, anchors, public_key=key.spki, device=token.device, now=world.now())
    write_atomic(folder / TRUST, certificates_pem(anchors))
    write_atomic(folder / CERTIFICATE, certificates_pem(chain))
    record = IdentityRecord(
        is_tpm=False,
        device=device_name(chain[0]),
        key=KEY,
        algorithm=key.algorithm,
        ca_url=str(est.url),
        enrolled_by="token",
    )
    save_record(folder, record)
    return Outcome(record, changed=True)


def _check_wish(settings: Settings) -> None:
    wish = settings.wish
    unheard = {
        "--evidence": wish.evidence,
        "a policy": settings.policy is not None,
        "--auth": settings.auth is not None,
        "another --algorithm": wish.algorithm not in {None, KeyAlgorithm.ECC_P256},
    }
    if named := [name for name, asked in unheard.items() if asked]:
        raise UsageError(
            f"there is no TPM, and a software key does not take {' or '.join(named)}",
            hint="leave that out, or give the device its TPM",
        )


def _key(folder: Path, world: World) -> SoftwareKey:
    """The key of a run that was interrupted, or a new one."""
    path = folder / KEY
    if path.exists():
        check_private(path)
        return read_software_key(path)
    world.tell("there is no TPM: making a software key, as --no-tpm=soft says")
    key = make_software_key()
    write_atomic(path, key.to_pem(), mode=PRIVATE_FILE)
    return key
