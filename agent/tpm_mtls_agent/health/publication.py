"""Where others find a report: ``health.json``, ``health.prom`` and ``maintenance`` in the run folder, and systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.attestation.health import HEALTH_LIMIT, HealthReport, decode_health, encode_health
from tpm_mtls.errors import EvidenceError, IdentityError, PemError
from tpm_mtls.files import PUBLIC_FILE, make_folder, read_capped, remove_file, write_atomic
from tpm_mtls.service_manager import notify_status
from tpm_mtls_agent.health.classify import status_line
from tpm_mtls_agent.health.metrics import as_metrics

if TYPE_CHECKING:
    from pathlib import Path

HEALTH: Final = "health.json"
METRICS: Final = "health.prom"
MAINTENANCE: Final = "maintenance"

_RUN_FOLDER: Final = 0o755


def publish(run_dir: Path, report: HealthReport, *, doing: str = "") -> None:
    """Writes ``report`` into ``run_dir``, each file atomically, for all to read; and tells systemd.

    ``maintenance`` is there while there is a reason, one on each line (its class, then what happened); without one it
    is removed. It comes first: who sees a newer ``health.json`` sees the right ``maintenance``.

    Args:
        run_dir: such as ``/run/tpm-mtls``; made if it is missing.
        report: from `tpm_mtls_agent.health.check_health`.
        doing: what else ``systemctl status`` is to show, before the TPM's health.

    Raises:
        StorageError: a file cannot be written.
    """
    make_folder(run_dir, mode=_RUN_FOLDER)
    if report.failures:
        reasons = "".join(f"{each.kind}: {each.reason}\n" for each in report.failures)
        write_atomic(run_dir / MAINTENANCE, reasons.encode(), mode=PUBLIC_FILE)
    else:
        remove_file(run_dir / MAINTENANCE)
    write_atomic(run_dir / METRICS, as_metrics(report).encode(), mode=PUBLIC_FILE)
    write_atomic(run_dir / HEALTH, msgspec.json.format(encode_health(report), indent=2) + b"\n", mode=PUBLIC_FILE)
    notify_status(f"{doing}; {status_line(report)}" if doing else status_line(report))


def load_health(run_dir: Path) -> HealthReport | None:
    """``health.json`` of ``run_dir``; none where no check was made since the machine started.

    Raises:
        IdentityError: it is damaged, or of another version.
        StorageError: it cannot be read.
    """
    path = run_dir / HEALTH
    if not path.exists():
        return None
    try:
        return decode_health(read_capped(path, limit=HEALTH_LIMIT))
    except (EvidenceError, PemError) as error:
        raise IdentityError(f"{path} is damaged: {error}", hint="check again: tpm-mtls agent check") from error
