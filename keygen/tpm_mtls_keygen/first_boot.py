"""First boot as a state machine: from what is there to the next step. Pure: no file, no TPM, no network.

    ContactCa -> MakeStorageKey -> MakeKey -> Enroll -> Record -> Tidy -> Done

A step is left out when what it makes is there already, so a run that was killed anywhere is finished by the next one.
What makes that safe is the order of the effects:

1. The journal (``first-boot.json``) names the key, by place and by Name, *before* the key gets there. So a key that an
   interrupted run left is recognised by its Name, and anything else at that place belongs to somebody else.
2. The key is there before a request leaves. The CA answers the same token and key again with the same certificate.
3. The certificate is there before ``identity.json``, and that before the journal goes: a folder with ``identity.json``
   is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.errors import HandleOccupiedError, IdentityError, StateError
from tpm_mtls.identity import CERTIFICATE, KEY, RECORD
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls_keygen.first_boot_folder import JOURNAL, KeyPlace, key_place
from tpm_mtls_keygen.keys import FIRST_HANDLE, LAST_HANDLE

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_keygen.first_boot_folder import Journal

DEFAULT_ALGORITHM = KeyAlgorithm.ECC_P256


@dataclass(frozen=True)
class Wish:
    """What was asked for; none where the default, or what an interrupted run began with, will do.

    Attributes:
        place: persistent handle or TSS2 PEM file.
        algorithm: as in `Journal`.
        handle: persistent handle for the key.
    """

    place: KeyPlace | None = None
    algorithm: KeyAlgorithm | None = None
    handle: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is there.

    Attributes:
        folder: the identity folder's name, for messages.
        record: ``identity.json``.
        journal: ``first-boot.json``.
        files: names of the files in the folder.
        srk_name: Name of the storage root key in the TPM, hex; none when there is none, or nobody needed to look.
        key_name: Name of what is where the record, else the journal, says the key is, hex; none when nothing is there.
        handles: the TPM's occupied persistent handles.
        ca_known: whether the CA has told its certificates in this run.
        certificate_error: what is wrong with the certificate and trust files, seen with the key that is there; none
            when they fit it. Means nothing while the key is missing.
    """

    folder: str
    certificate_error: TpmMtlsError | None
    record: IdentityRecord | None = None
    journal: Journal | None = None
    files: AbstractSet[str] = frozenset()
    srk_name: str | None = None
    key_name: str | None = None
    handles: AbstractSet[int] = frozenset()
    ca_known: bool = False


@dataclass(frozen=True)
class KeyPlan:
    """The key to make.

    Attributes:
        algorithm: as in `Journal`.
        handle: the free persistent handle it goes to; none for a TSS2 PEM file.
    """

    algorithm: KeyAlgorithm
    handle: int | None


@dataclass(frozen=True)
class ContactCa:
    """Ask the CA for its certificates: before anything is made, so that a wrong URL or trust anchor leaves no trace."""


@dataclass(frozen=True)
class MakeStorageKey:
    """Make the storage root key."""


@dataclass(frozen=True)
class MakeKey:
    """Make the device key of ``plan`` under the storage root key with the Name ``srk_name``."""

    plan: KeyPlan
    srk_name: str


@dataclass(frozen=True)
class Enroll:
    """Ask the CA for a certificate for the journal's key, and store it."""

    journal: Journal


@dataclass(frozen=True)
class Record:
    """Write ``identity.json``."""

    journal: Journal
    srk_name: str


@dataclass(frozen=True)
class Tidy:
    """Remove the journal."""


@dataclass(frozen=True)
class Done:
    """Nothing is left to do."""

    record: IdentityRecord


Step: TypeAlias = ContactCa | MakeStorageKey | MakeKey | Enroll | Record | Tidy | Done


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
        return Done(facts.record) if facts.journal is None else Tidy()
    begun = facts.journal if _key_is_there(facts) else None
    _check_same_tpm(facts, key_there=begun is not None)
    if begun is None:
        _check_unclaimed(facts)
        plan = plan_key(facts, wish)
        if not facts.ca_known:
            return ContactCa()
        return MakeKey(plan, facts.srk_name) if facts.srk_name else MakeStorageKey()
    _check_wish(wish, begun, facts)
    if facts.certificate_error is None and facts.srk_name:
        return Record(begun, facts.srk_name)
    if not facts.ca_known:
        return ContactCa()
    return Enroll(begun) if facts.srk_name else MakeStorageKey()


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
    same_srk = facts.srk_name == record.srk_name
    if facts.key_name != record.key_name:
        what = "something else is there" if facts.key_name else "nothing is there"
        why = "" if same_srk else "; this is another TPM, or it was cleared"
        raise IdentityError(f"the device key {record.key} of {record.device} is gone: {what}{why}", hint=_anew(facts))
    if key_place(record.key) is KeyPlace.TSS2 and not same_srk:
        raise IdentityError(
            f"the device key {record.key} of {record.device} belongs to another TPM, or this one was cleared",
            hint=_anew(facts),
        )
    if facts.certificate_error is not None:
        raise facts.certificate_error


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
    for name in (KEY, CERTIFICATE):
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


def _anew(facts: Facts) -> str:
    return (
        "restore the right disk or TPM; or enroll anew with a new token in another --state-dir, "
        f"or in {facts.folder} after emptying it"
    )
