"""What a TPM says of itself, and of the device's keys in it; asked in a process of its own.

``python -m tpm_mtls.doctor.tpm_report``: reads a `TpmJob` from its standard input, writes a `TpmReport` to its output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.attestation.health import Condition  # noqa: TC001 - msgspec reads the annotations
from tpm_mtls.doctor.findings import Failed, failed
from tpm_mtls.errors import (
    CredentialError,
    HandleNotFoundError,
    HandleOccupiedError,
    StorageError,
    TpmMtlsError,
)
from tpm_mtls.identity import IdentityRecord  # noqa: TC001 - the same
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tpm_attributes import PERMANENT, STARTUP_CLEAR

if TYPE_CHECKING:
    from tpm_mtls.tpm import Tpm


class TpmJob(msgspec.Struct, frozen=True, kw_only=True):
    """Which TPM, and the identity whose keys should be in it, if there is one."""

    tcti: str
    folder: str
    record: IdentityRecord | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """As `tpm_mtls.life_cycle.Observed`, to be passed on."""

    srk_name: str | None
    ek_sha256: str | None
    reset_count: int | None
    has_key: bool


class TpmReport(msgspec.Struct, frozen=True, kw_only=True):
    """What it says.

    Attributes:
        error: why it says nothing, or not all of it.
        specification: its family, such as ``2.0``, and revision.
        condition: how it is.
        permanent: as `tpm_mtls.tpm_attributes.Permanent`.
        startup: as `tpm_mtls.tpm_attributes.StartupClear`.
        banks: PCR banks that have PCRs.
        srk: storage root key: its kind, or what else is in its place; empty if nothing is.
        srk_is_key: whether it is a storage key.
        seen: what tells of a clear or an exchange; none without an identity in a TPM.
        key_is_protected: whether the device's key has an authorization value: to try it without would count as a
            wrong one.
    """

    error: Failed | None = None
    specification: str = ""
    condition: Condition | None = None
    permanent: int = 0
    startup: int = 0
    banks: tuple[str, ...] = ()
    srk: str = ""
    srk_is_key: bool = False
    seen: Seen | None = None
    key_is_protected: bool = False


def ask_tpm(job: TpmJob) -> TpmReport:
    """What the TPM says (some 15 commands, none of which writes anything)."""
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - imports tpm2-pytss, the others of this module do without

    report = TpmReport()
    try:
        with open_tpm(job.tcti) as tpm:
            report = _condition(tpm)
            report = _keys(tpm, report, job)
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, error=failed(error))
    return report


def _condition(tpm: Tpm) -> TpmReport:
    from tpm_mtls.tpm_tools.properties import FAMILY, REVISION  # noqa: PLC0415 - as above

    condition = tpm.capabilities.condition()
    fixed, variable = tpm.capabilities.fixed(), tpm.capabilities.variable()
    family = fixed[FAMILY].to_bytes(4, "big").rstrip(b"\0").decode(errors="replace")
    return TpmReport(
        specification=f"{family} revision {fixed[REVISION] / 100:.2f}",
        condition=condition,
        permanent=variable[PERMANENT],
        startup=variable[STARTUP_CLEAR],
        banks=tpm.pcrs.banks(),
    )


def _keys(tpm: Tpm, report: TpmReport, job: TpmJob) -> TpmReport:
    from tpm_mtls.life_cycle_observed import observe  # noqa: PLC0415 - as above

    try:
        srk = tpm.srk.read()
    except HandleOccupiedError as error:
        report = msgspec.structs.replace(report, srk=str(error))
    else:
        report = msgspec.structs.replace(report, srk=str(srk or ""), srk_is_key=srk is not None)
    if job.record is None or not job.record.is_tpm:
        return report
    found = observe(tpm, Path(job.folder), job.record)
    seen = Seen(
        srk_name=found.srk_name, ek_sha256=found.ek_sha256, reset_count=found.reset_count, has_key=found.has_key
    )
    return msgspec.structs.replace(report, seen=seen, key_is_protected=_is_protected(tpm, job))


def _is_protected(tpm: Tpm, job: TpmJob) -> bool:
    """By whether wrong values count (keys without a value are made noDA); and by what its file says, if it has one.

    A file that cannot be read is told when the key is tried.
    """
    from tpm_mtls.files import read_capped  # noqa: PLC0415 - as above
    from tpm_mtls.identity import load_identity  # noqa: PLC0415 - as above
    from tpm_mtls.structures import Attribute, parse_tss2_pem  # noqa: PLC0415 - as above

    key = load_identity(Path(job.folder)).key
    if isinstance(key, KeyFile):
        try:
            found = parse_tss2_pem(read_capped(key.path), str(key))
        except (StorageError, CredentialError):
            return False
        return not found.empty_auth and Attribute.NODA not in found.public.attributes
    try:
        return Attribute.NODA not in tpm.read_public(key.handle).public.attributes
    except HandleNotFoundError:
        return False


def main() -> None:
    """The program."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=TpmJob)
    sys.stdout.buffer.write(msgspec.json.encode(ask_tpm(job)))


if __name__ == "__main__":
    main()
