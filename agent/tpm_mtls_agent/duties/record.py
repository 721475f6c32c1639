"""What the agent's duties came to last: ``duties.json`` in the run folder, for ``tpm-mtls agent status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.attestation.messages import Verdict  # noqa: TC001 - msgspec reads it at run time
from tpm_mtls.files import PUBLIC_FILE, make_folder, write_atomic
from tpm_mtls.json_record import load_json_record

if TYPE_CHECKING:
    from pathlib import Path

DUTIES: Final = "duties.json"
FORMAT: Final = 1

_LIMIT: Final = 512 * 1024  # bytes: `tpm_mtls.attestation.messages.ANSWER_LIMIT`, indented
_RUN_FOLDER: Final = 0o755


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How something ended last.

    Attributes:
        time: when, seconds since 1970.
        error: why it failed; empty if it did not.
        hint: what to do about it.
    """

    time: int
    error: str = ""
    hint: str = ""


class DutiesRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``duties.json``; of what never happened there is none.

    Attributes:
        format: version of this structure.
        check_began: when the health check began whose report is in ``health.json``, seconds of CLOCK_MONOTONIC.
        round_began: when the last round that is over began, seconds of CLOCK_MONOTONIC. In a round, at the start and
            when somebody asks, everything is done once, whatever failed before.
        life_cycle: what became of the TPM since the device enrolled (`tpm_mtls.life_cycle.Change`).
        life_cycle_text: the same for people; empty if it is the same TPM.
        backend: how the last exchange with the backend ended.
        verdict: its last verdict, which is about what was booted, and none about the TPM's health.
        attested: when that was, seconds since 1970.
        attestations: how many verdicts there were since the agent started.
        renewal: how the last renewal ended.
        renews_at: when the next one is planned, seconds since 1970.
    """

    format: int = FORMAT
    check_began: float | None = None
    round_began: float | None = None
    life_cycle: str | None = None
    life_cycle_text: str = ""
    backend: Outcome | None = None
    verdict: Verdict | None = None
    attested: int | None = None
    attestations: int = 0
    renewal: Outcome | None = None
    renews_at: int | None = None


def save_duties(run_dir: Path, record: DutiesRecord) -> None:
    """Writes ``duties.json`` atomically, for all to read.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(run_dir, mode=_RUN_FOLDER)
    data = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    write_atomic(run_dir / DUTIES, data, mode=PUBLIC_FILE)


def load_duties(run_dir: Path) -> DutiesRecord | None:
    """``duties.json``; none where no agent with an identity ran since the machine started.

    Raises:
        IdentityError: it is damaged, or of another version.
        StorageError: it cannot be read.
    """
    hint = "let the agent write it anew: tpm-mtls agent check"
    return load_json_record(run_dir / DUTIES, DutiesRecord, limit=_LIMIT, version=FORMAT, hint=hint)
