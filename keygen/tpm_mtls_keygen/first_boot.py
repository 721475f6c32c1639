"""First boot as a state machine: from what is there to the next step. Pure: no file, no TPM, no network.

    ContactCa -> MakeStorageKey -> MakeKey -> MakeAttestationKey -> Enroll -> Record -> Copy -> Tidy -> Done

or, where the TPM's NV memory still has a copy of the identity that the disk lost: Restore -> Done. A step is left out
when what it makes is there already, so a run that was killed anywhere is finished by the next one.
What makes that safe is the order of the effects:

1. The journal (``first-boot.json``) names the key, by place and by Name, *before* the key gets there. So a key that an
   interrupted run left is recognised by its Name, and anything else at that place belongs to somebody else.
2. The key is there before a request leaves. The CA answers the same token and key again with the same certificate.
3. The attestation key exists on disk only. It is there before the certificate for which it vouches is asked for.
4. The certificate is there before ``identity.json``, that before the copy in the NV memory, and that before the journal
   goes: a folder with ``identity.json`` is complete, and one without a journal has its copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.errors import HandleOccupiedError, IdentityError, StateError
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, RECORD, enroll_anew
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls.life_cycle import Observed, judge
from tpm_mtls_keygen.first_boot_folder import JOURNAL, KeyPlace, key_place
from tpm_mtls_keygen.first_boot_steps import (
    ContactCa,
    Copy,
    Done,
    Enroll,
    Facts,
    Forget,
    KeyPlan,
    MakeAttestationKey,
    MakeKey,
    MakeStorageKey,
    Record,
    Restore,
    Step,
    Tidy,
    Wish,
)
from tpm_mtls_keygen.keys import FIRST_HANDLE, LAST_HANDLE

if TYPE_CHECKING:
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_keygen.first_boot_folder import Journal

DEFAULT_ALGORITHM = KeyAlgorithm.ECC_P256


def next_step(facts: Facts, wish: Wish) -> Step:
    """The step that comes next.

    Raises:
        StateError: what is there contradicts ``wish``.
        IdentityError: what is there is incomplete, damaged or of another device; nothing may be overwritten.
        HandleOccupiedError: somebody else's object is at the handle asked for.
        TpmMtlsError: an enrolled device's certificate is unusable; ``facts.certificate_error`` itself.
    """
    if facts.record is not None:
        check_enrolled(facts, facts.record)
        _check_wish(wish, facts.record, facts)
        if facts.journal is None:
            return Done(facts.record)
        return Copy(facts.record) if wish.copy and not facts.copied else Tidy()
    if (step := _copy_step(facts, wish)) is not None:
        return step
    begun = facts.journal if _key_is_there(facts) else None
    _check_same_tpm(facts, key_there=begun is not None)
    if begun is None:
        _check_unclaimed(facts)
        plan = plan_key(facts, wish)
        if not facts.ca_known:
            return ContactCa()
        return MakeKey(plan, facts.srk_name) if facts.srk_name else MakeStorageKey()
    _check_wish(wish, begun, facts)
    return _continue(facts, wish, begun)


def _continue(facts: Facts, wish: Wish, begun: Journal) -> Step:
    """The step after `MakeKey`."""
    if facts.certificate_error is None and facts.srk_name:
        return Record(begun, facts.srk_name)
    if not facts.ca_known:
        return ContactCa()
    if not facts.srk_name:
        return MakeStorageKey()
    if wish.evidence and not facts.has_attestation_key:
        return MakeAttestationKey()
    return Enroll(begun)


def _copy_step(facts: Facts, wish: Wish) -> Step | None:
    """What becomes of a copy in the NV memory while there is no ``identity.json``; none if it does not matter.

    Raises:
        IdentityError, TpmMtlsError: it cannot be restored; ``facts.copy_error`` itself.
        HandleOccupiedError: something else is where the copy goes.
    """
    if not wish.copy:
        return None
    if facts.copy is None:
        if facts.copy_error is not None:
            raise facts.copy_error
        return None
    if facts.journal is not None:  # an unfinished first boot goes on, unless it is of this very key
        same = facts.copy_error is None and facts.copy.record.key_name == facts.journal.key_name
        return Restore(facts.copy) if same else None
    _check_unclaimed(facts)
    if wish.anew:
        return Forget(facts.copy)
    if facts.copy_error is not None:
        raise facts.copy_error
    _check_wish(wish, facts.copy.record, facts)
    return Restore(facts.copy)


def plan_key(facts: Facts, wish: Wish) -> KeyPlan:
    """Which key `MakeKey` makes: as the interrupted run wanted it, else as wished, else the defaults.

    Raises:
        HandleOccupiedError: the handle asked for, or every one there is to choose from, is taken.
    """
    begun = facts.journal
    algorithm = wish.algorithm or (begun.algorithm if begun else DEFAULT_ALGORITHM)
    place = wish.place or (key_place(begun.key) if begun else KeyPlace.PERSISTENT)
    if place is KeyPlace.TSS2:
        return KeyPlan(algorithm, handle=None)
    if wish.handle is None:
        return KeyPlan(algorithm, _free_handle(facts))
    if wish.handle in facts.handles:
        raise HandleOccupiedError(
            f"there is something else at {PersistentHandle(wish.handle)}",
            hint="name another --handle, or none for the first free one; see what it is: tpm-mtls keygen list",
            handle=wish.handle,
        )
    return KeyPlan(algorithm, wish.handle)


def check_enrolled(facts: Facts, record: IdentityRecord) -> None:
    """Checks that an enrolled device is still what it was.

    1. Its key is where the record says: the Name there is the record's.
    2. A key in a file can be loaded: the storage root key is the one it was made under.
    3. Certificate and trust fit the key (``facts.certificate_error``).

    Raises:
        IdentityError: 1 or 2 failed.
        TpmMtlsError: 3 failed; ``facts.certificate_error`` itself.
    """
    if facts.key_name != record.key_name:
        what = "something else is there" if facts.key_name else "nothing is there"
        why = _what_happened(facts, record)
        raise IdentityError(
            f"the device key {record.key} of {record.device} is gone: {what}" + (f"; {why}" if why else ""),
            hint=_anew(facts, record),
        )
    if key_place(record.key) is KeyPlace.TSS2 and facts.srk_name != record.srk_name:
        raise IdentityError(
            f"the device key {record.key} of {record.device} cannot be loaded: {_what_happened(facts, record)}",
            hint=_anew(facts, record),
        )
    if facts.certificate_error is not None:
        raise facts.certificate_error


def check_is_tpm(record: IdentityRecord, folder: Path) -> None:
    """Refuses an identity without a TPM, where one with a TPM is meant.

    Raises:
        IdentityError: it has a software key.
    """
    if not record.is_tpm:
        raise IdentityError(
            f"{record.device} in {folder} has a software key, enrolled where there was no TPM",
            hint="to keep it: --no-tpm=soft; to use a TPM: enroll anew in another --state-dir",
        )


def _what_happened(facts: Facts, record: IdentityRecord) -> str:
    """Why the key is not there."""
    return judge(record, Observed(facts.srk_name, ek_sha256=facts.ek_sha256, owner=facts.owner)).text


def _check_wish(wish: Wish, begun: IdentityRecord | Journal, facts: Facts) -> None:
    """Refuses options that contradict the key that is there already."""
    reference = parse_key_reference(begun.key)
    handle = reference.handle if isinstance(reference, PersistentHandle) else None
    same_place = wish.place in {None, key_place(begun.key)} and wish.handle in {None, handle}
    if same_place and wish.algorithm in {None, begun.algorithm}:
        return
    raise StateError(
        f"{facts.folder} has the {begun.algorithm} key {begun.key} already, which is not what was asked for",
        hint="leave out --key, --algorithm and --handle to go on with it, or name another --state-dir",
    )


def _check_unclaimed(facts: Facts) -> None:
    """Without record and journal the folder may hold nothing that a first boot would overwrite."""
    for name in (KEY, ATTESTATION_KEY, CERTIFICATE):
        if name in facts.files and facts.journal is None:
            raise IdentityError(
                f"{facts.folder} holds a {name} but neither {RECORD} nor {JOURNAL}: whose it is cannot be told",
                hint="move it away, or name another --state-dir",
            )


def _key_is_there(facts: Facts) -> bool:
    """Whether the journal's key is in its place; something else in the place of a key file is an error."""
    if facts.journal is None or facts.key_name is None:
        return False
    if facts.key_name == facts.journal.key_name:
        return True
    if key_place(facts.journal.key) is KeyPlace.TSS2:
        raise IdentityError(
            f"{facts.folder}/{facts.journal.key} is not the key that {JOURNAL} speaks of",
            hint="move it away, then run first-boot again",
        )
    return False


def _check_same_tpm(facts: Facts, *, key_there: bool) -> None:
    """A half-finished first boot goes on only on the TPM where it began (while that has no SRK, nobody can tell)."""
    if facts.journal is None or facts.srk_name in {None, facts.journal.srk_name}:
        return
    if key_there and key_place(facts.journal.key) is KeyPlace.PERSISTENT:
        return
    raise IdentityError(
        f"the unfinished first boot in {facts.folder} began on another TPM, or this one was cleared since",
        hint=f"to begin again on this TPM, remove {JOURNAL} and {KEY} there",
    )


def _free_handle(facts: Facts) -> int:
    for handle in range(FIRST_HANDLE, LAST_HANDLE + 1):
        if handle not in facts.handles:
            return handle
    raise HandleOccupiedError(
        f"all handles from {FIRST_HANDLE:#x} to {LAST_HANDLE:#x} are taken",
        hint="remove one: tpm-mtls keygen remove; or use a key file: --key tss2",
        handle=LAST_HANDLE,
    )


def _anew(facts: Facts, record: IdentityRecord) -> str:
    return f"restore the right disk or TPM; or give this identity up: {enroll_anew(Path(facts.folder), record)}"
