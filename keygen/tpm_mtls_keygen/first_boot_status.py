"""How far first boot came, for a person or a script. Asks the TPM only when told to."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tpm_mtls.certificates import certificate_spki
from tpm_mtls.errors import HandleOccupiedError, TpmMtlsError
from tpm_mtls.files import check_private
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, IdentityRecord, load_record
from tpm_mtls_keygen.first_boot_folder import INSTALL, Journal, load_journal
from tpm_mtls_keygen.issued import check_stored, due_at, load_stored
from tpm_mtls_keygen.software_key import read_software_key

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.tpm import Tpm


class State(enum.Enum):
    """How far it came."""

    NOT_STARTED = "not started"
    UNFINISHED = "unfinished"
    ENROLLED = "enrolled"


class MirrorState(enum.Enum):
    """What the TPM's NV memory has of an identity."""

    CURRENT = "current"
    STALE = "stale"
    NONE = "none"
    OCCUPIED = "occupied"


@dataclass(frozen=True)
class Status:
    """What `read_status` found.

    Attributes:
        folder: the identity folder.
        state: how far first boot came.
        pending: what the next run will do; none when there is nothing to do.
        record: the identity, once enrolled.
        journal: the key of an unfinished first boot.
        serial: the certificate's serial number, hex.
        not_after: the end of the certificate's validity.
        days_left: until then; negative afterwards.
        renewal_due: when ``tpm-mtls keygen renew --if-due`` begins to do something.
        has_attestation_key: whether ``attestation.key.json`` is there.
        mirror: what the TPM's NV memory has of this identity; none if nobody looked.
        problems: what is wrong, a line each.
    """

    folder: str
    state: State
    pending: str | None
    record: IdentityRecord | None = None
    journal: Journal | None = None
    serial: str | None = None
    not_after: datetime | None = None
    days_left: int | None = None
    renewal_due: datetime | None = None
    has_attestation_key: bool = False
    mirror: MirrorState | None = None
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        begun = self.record or self.journal
        return {
            "state": self.state.value,
            "pending": self.pending,
            "device": self.record.device if self.record else None,
            "is_tpm": self.record.is_tpm if self.record else None,
            "key": begun.key if begun else None,
            "algorithm": begun.algorithm if begun else None,
            "serial": self.serial,
            "not_after": self.not_after.isoformat() if self.not_after else None,
            "days_left": self.days_left,
            "renewal_due": self.renewal_due.isoformat() if self.renewal_due else None,
            "enrolled_by": self.record.enrolled_by if self.record else None,
            "ek_sha256": self.record.ek_sha256 if self.record else None,
            "attestation_key": self.has_attestation_key,
            "mirror": self.mirror.value if self.mirror else None,
            "tpm_vendor": (self.record.tpm_vendor or None) if self.record else None,
            "tpm_firmware": (self.record.tpm_firmware or None) if self.record else None,
            "ca_url": self.record.ca_url if self.record else None,
            "problems": list(self.problems),
        }


def read_status(folder: Path, *, now: datetime, verify: bool = False, tcti: str | None = None) -> Status:
    """What ``folder`` says at the time ``now``; with ``verify``, also what the TPM at ``tcti`` says about the key.

    Raises:
        IdentityError: the folder's own records are damaged.
        StorageError: it cannot be read.
        TpmUnavailableError, TpmRefusedError: with ``verify``, no TPM answers, or it refuses.
    """
    record, journal = load_record(folder), load_journal(folder)
    if (folder / INSTALL).exists():
        status = Status(str(folder), State.UNFINISHED, "finishing a change of the identity", record=record)
    elif record is not None:
        status = _enrolled(folder, record, now)
    elif journal is not None:
        pending = "writing the identity" if (folder / CERTIFICATE).exists() else "asking the CA for a certificate"
        status = Status(str(folder), State.UNFINISHED, pending, journal=journal)
    else:
        status = Status(str(folder), State.NOT_STARTED, "everything: run tpm-mtls keygen first-boot")
    status = replace(status, has_attestation_key=(folder / ATTESTATION_KEY).exists())
    if not verify or not folder.exists() or (record is not None and not record.is_tpm):
        return status
    problem, mirror = _ask_tpm(folder, now, tcti)
    status = replace(status, mirror=mirror)
    known = problem is None or problem in status.problems
    return status if known else replace(status, problems=(*status.problems, problem or ""))


def describe(status: Status) -> str:
    """The same for a person, in a few lines."""
    data = status.as_dict()
    lines = [f"{status.state.value}" + (f" as {data['device']}" if data["device"] else "")]
    shown = {
        "key": f"{data['key']} ({data['algorithm']})" if data["key"] else None,
        "certificate": f"{data['serial']}, until {data['not_after']}, {data['days_left']} days left"
        if data["serial"]
        else None,
        "renewal due": data["renewal_due"],
        "tpm": f"{data['tpm_vendor']} {data['tpm_firmware']}" if data["tpm_vendor"] else None,
        "no tpm": "the key is a software key, which can be copied" if data["is_tpm"] is False else None,
        "ek hash": data["ek_sha256"],
        "mirror in the tpm": data["mirror"],
        "ca": data["ca_url"],
        "pending": data["pending"],
    }
    lines += [f"  {name}: {value}" for name, value in shown.items() if value]
    return "\n".join([*lines, *(f"  problem: {problem}" for problem in status.problems)])


def _enrolled(folder: Path, record: IdentityRecord, now: datetime) -> Status:
    status = Status(str(folder), State.ENROLLED, None, record=record)
    problems: list[str] = []
    try:
        leaf = load_stored(folder, CERTIFICATE)[0]
        end = leaf.not_valid_after_utc
        status = replace(
            status,
            serial=f"{leaf.serial_number:x}",
            not_after=end,
            days_left=(end - now).days,
            renewal_due=due_at(leaf),
        )
        # which key it must be for, only the TPM can tell: --verify; where there is none, the key itself
        public_key = certificate_spki(leaf) if record.is_tpm else read_software_key(folder / KEY).spki
        check_stored(folder, public_key=public_key, now=now, device=record.device)
    except TpmMtlsError as error:
        problems.append(str(error))
    if record.key == KEY:
        try:
            check_private(folder / KEY)
        except TpmMtlsError as error:
            problems.append(str(error))
    return replace(status, problems=tuple(problems))


def _ask_tpm(folder: Path, now: datetime, tcti: str | None) -> tuple[str | None, MirrorState | None]:
    """What is wrong with the key in the TPM, and what its NV memory has."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.first_boot import check_enrolled  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.first_boot_observe import ask_tpm, read_folder  # noqa: PLC0415 - the same

    facts = read_folder(folder)
    with open_tpm(tcti) as tpm:
        facts = ask_tpm(tpm, folder, facts, now=now, anchors=None)
        mirror = _mirror_state(tpm, folder, facts.record) if facts.record is not None else None
    if facts.record is not None:
        try:
            check_enrolled(facts, facts.record)
        except TpmMtlsError as error:
            return str(error), mirror
    elif facts.journal is not None and facts.key_name != facts.journal.key_name:
        return f"the key {facts.journal.key} was not made yet, or is gone: the next run makes one", mirror
    return None, mirror


def _mirror_state(tpm: Tpm, folder: Path, record: IdentityRecord) -> MirrorState:
    from tpm_mtls_keygen.nv_mirror import find_place, read_mirror  # noqa: PLC0415 - imports tpm2-pytss

    try:
        mirror = find_place(tpm, folder).mirror
    except HandleOccupiedError:
        return MirrorState.OCCUPIED
    if mirror is None:
        return MirrorState.NONE
    try:
        return MirrorState.CURRENT if mirror == read_mirror(folder, record) else MirrorState.STALE
    except TpmMtlsError:  # a damaged file is among the problems already
        return MirrorState.STALE
