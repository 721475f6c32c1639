"""The options of ``tpm-mtls agent run`` for its duties; light, as the command line imports it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tpm_mtls.authorization import read_authorization
from tpm_mtls.cli_options import auth_option, endorsement_auth_option
from tpm_mtls.durations import duration
from tpm_mtls.errors import TpmUnavailableError
from tpm_mtls.tcti import is_raw, resolve_tcti

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_agent.duties.settings import DutySettings

F = TypeVar("F", bound="Callable[..., Any]")

RUN_FOLDER: Final = Path("/run/tpm-mtls")
EVENT_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
IMA_LOG: Final = Path("/sys/kernel/security/ima/binary_runtime_measurements")
"""Where the kernel shows them: drivers/char/tpm/eventlog/common.c, security/integrity/ima/ima_fs.c."""

DUTY_NAMES: Final = (
    *("backend", "interval", "event_log", "ima_log", "run_dir"),
    *("renew", "rotate_key", "on_renewal", "auth", "endorsement_auth"),
)
"""The parameters that `duty_options` passes."""

_path = click.Path(path_type=Path, readable=False)


def run_dir_option(function: F) -> F:
    """``--run-dir``: where the agent shows what its duties came to; passes a path to the parameter ``run_dir``."""
    return click.option(
        "--run-dir",
        type=_path,
        default=RUN_FOLDER,
        show_default=True,
        metavar="DIR",
        help="Where health.json, health.prom, maintenance and duties.json are.",
    )(function)


def duty_options(function: F) -> F:
    """What `read_duties` takes, by the same names: `DUTY_NAMES`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _log_option(name: str, default: Path, what: str) -> Callable[[F], F]:
    return click.option(
        name, type=_path, default=default, show_default=True, metavar="PATH", help=f"{what} Sent if it is there."
    )


_OPTIONS: Final = (
    click.option("--backend", metavar="URL", help="Whom to send health and quotes, like https://backend.example:8443."),
    click.option(
        "--interval",
        callback=duration,
        default="1h",
        show_default=True,
        metavar="TIME",
        help="Between two health checks, and between two quotes: 30s, 5m, 1h, 24h.",
    ),
    click.option(
        "--event-log",
        type=_path,
        default=EVENT_LOG,
        show_default=True,
        metavar="PATH",
        help="The firmware's event log.",
    ),
    click.option(
        "--ima-log",
        type=_path,
        default=IMA_LOG,
        show_default=True,
        metavar="PATH",
        help="IMA's list of measured files.",
    ),
    run_dir_option,
    click.option("--renew/--no-renew", default=True, show_default=True, help="Renew the certificate when it is due."),
    click.option("--rotate-key", is_flag=True, help="Make a new key at each renewal."),
    click.option("--on-renewal", metavar="COMMAND", help="What to run after a renewal, without a shell."),
    auth_option("the TLS key's authorization value, if it has one,"),
    endorsement_auth_option,
)


def takes_one_connection(tcti: str | None) -> bool:
    """Whether the TPM at ``tcti`` takes one connection at a time; so it is taken to be while it is not there."""
    try:
        return is_raw(resolve_tcti(tcti))
    except TpmUnavailableError:
        return True


def read_duties(  # noqa: PLR0913 - one parameter per option
    *,
    state_dir: Path,
    tcti: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    backend: str | None,
    interval: float,
    event_log: Path,
    ima_log: Path,
    run_dir: Path,
    renew: bool,
    rotate_key: bool,
    on_renewal: str | None,
    auth: str | None,
    endorsement_auth: str | None,
) -> DutySettings:
    """What the options say.

    Raises:
        UsageError: the backend's URL, the command or a source of an authorization value is wrong.
        StorageError, PemError: an authorization value cannot be read.
    """
    from tpm_mtls_agent.duties.backend import parse_backend  # noqa: PLC0415 - imports TPM libraries
    from tpm_mtls_agent.duties.commands import split_command  # noqa: PLC0415 - the same
    from tpm_mtls_agent.duties.schedule import Pace  # noqa: PLC0415 - the same
    from tpm_mtls_agent.duties.settings import DutySettings, Sources  # noqa: PLC0415 - the same
    from tpm_mtls_agent.health import Authorizations  # noqa: PLC0415 - the same

    return DutySettings(
        folder=state_dir,
        run_dir=run_dir,
        tcti=tcti,
        exclusive=takes_one_connection(tcti),
        backend=parse_backend(backend) if backend is not None else None,
        pace=Pace(interval=interval),
        event_log=event_log,
        ima_log=ima_log,
        renew=renew,
        rotate_key=rotate_key,
        on_renewal=split_command(on_renewal) if on_renewal is not None else (),
        authorizations=Authorizations(srk=read_authorization(srk_auth), key=read_authorization(auth)),
        sources=Sources(key=auth, owner=owner_auth, srk=srk_auth, endorsement=endorsement_auth),
    )
