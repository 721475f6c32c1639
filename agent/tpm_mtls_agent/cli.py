"""``tpm-mtls agent``."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from tpm_mtls.cli_options import (
    answer,
    auth_option,
    json_option,
    srk_auth_option,
    state_dir_option,
    storage_options,
    tcti_option,
)
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import PeerUnreachableError, TpmMtlsError
from tpm_mtls.policy.options import policy_options
from tpm_mtls.secrets.options import socket_option
from tpm_mtls.secrets.protocol import SOCKET_VARIABLE
from tpm_mtls_agent.duty_options import DUTY_NAMES, duty_options, read_duties, run_dir_option

_file = click.Path(dir_okay=False, path_type=Path)

_LOCK = "agent.lock"
_AUDIT = "agent.audit.jsonl"


@click.group(cls=CommandGroup)
def agent() -> None:
    """The device's daemon: keeps secrets, checks the TPM, shows what was booted, renews the certificate."""


@agent.command(epilog="\b\nExample: tpm-mtls agent run --socket /run/tpmd.sock --allow /etc/tpm-mtls/agent.allow.toml")
@socket_option()
@state_dir_option
@click.option(
    "--allow", type=_file, metavar="FILE", help="Who may ask for what; see above.  [default: who knows a name]"
)
@click.option("--group", help="Whose members may connect.  [default: tss, or nobody else where that cannot be]")
@click.option("--audit", type=_file, metavar="FILE", help=f"The audit log.  [default: DIR/{_AUDIT}]")
@policy_options
@duty_options
@storage_options
@tcti_option
@json_option
def run(  # noqa: PLR0913 - one parameter per option
    *,
    socket: Path,
    state_dir: Path,
    allow: Path | None,
    group: str | None,
    audit: Path | None,
    owner_auth: str | None,
    srk_auth: str | None,
    tcti: str | None,
    as_json: bool,
    **others: Any,  # noqa: ANN401 - click's, for `read_wish` and `read_duties`
) -> None:
    """Keep secrets behind the TPM, and answer programs at a Unix socket; print its path once they can connect.

    Where systemd passes a socket (a .socket unit) that one is used. With --pcrs or --policy-signer, what is set from
    now on can be read only while the machine is in such a state. SIGHUP reads the allow-list again and reopens the
    audit log, SIGTERM answers what is in work and ends.

    In a folder with an identity it also looks after that: each --interval it checks the TPM and says so in --run-dir,
    with --backend it tells the backend and shows it by a quote what was booted, and it renews the certificate when two
    thirds of its life are over. SIGUSR1, or tpm-mtls agent check: all of it now.

    \b
    An allow-list, mode 0600, in TOML; what no rule allows is refused:
      [[allow]]
      uid = "shop"                              # number or name
      gid = "shop"                              # one of the program's groups
      cgroup = "/system.slice/docker-*.scope"   # or /docker/** for all below
      actions = ["get"]                         # set, get, del
      names = ["stripe-*"]
    """  # noqa: D301 - click's marker for a block that is not re-wrapped
    import asyncio  # noqa: PLC0415 - only this command pays for it
    from functools import partial  # noqa: PLC0415 - the same

    from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization  # noqa: PLC0415 - the same
    from tpm_mtls.files import make_folder  # noqa: PLC0415 - the same
    from tpm_mtls.policy.new_policy import read_wish  # noqa: PLC0415 - the same
    from tpm_mtls_agent.daemon import prepared  # noqa: PLC0415 - the same
    from tpm_mtls_agent.hardening import harden  # noqa: PLC0415 - the same
    from tpm_mtls_agent.settings import Settings  # noqa: PLC0415 - the same
    from tpm_mtls_agent.storage.opening import open_store  # noqa: PLC0415 - the same

    harden()
    given = {name: others.pop(name) for name in DUTY_NAMES}
    duties = read_duties(state_dir=state_dir, tcti=tcti, owner_auth=owner_auth, srk_auth=srk_auth, **given)
    opener = partial(
        open_store,
        state_dir,
        tcti=tcti,
        wish=read_wish(**others),
        owner_authorization=read_hierarchy_authorization(owner_auth),
        srk_authorization=read_authorization(srk_auth),
    )
    make_folder(state_dir)
    settings = Settings(
        socket=socket,
        audit=audit or state_dir / _AUDIT,
        lock=state_dir / _LOCK,
        group=group,
        allow_list=allow,
        exclusive=duties.exclusive,
        duties=duties,
    )

    def ready(path: str) -> None:
        answer({"socket": path}, path, as_json=as_json)
        sys.stdout.flush()

    async def serve() -> None:
        with prepared(settings, opener) as daemon:
            await daemon.run(ready)

    _log_to_stderr()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # `agent check` may find the lock before there is a handler
    asyncio.run(serve())


@agent.command(epilog="Example: tpm-mtls agent check --json")
@state_dir_option
@run_dir_option
@srk_auth_option
@auth_option("the TLS key's authorization value, if it has one,")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait so long for what the backend says of what was booted, too; fails if it does not trust that.",
)
@tcti_option
@json_option
def check(
    *,
    state_dir: Path,
    run_dir: Path,
    srk_auth: str | None,
    auth: str | None,
    wait: float | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Check the TPM now; fails if it has to be in maintenance mode.

    An agent that runs is asked to, and also tells its backend and shows it what was booted; without one this command
    checks by itself, and needs the keys' authorization values then.
    """
    from tpm_mtls.authorization import read_authorization  # noqa: PLC0415 - only this command pays for it
    from tpm_mtls_agent import check_command  # noqa: PLC0415 - imports TPM libraries
    from tpm_mtls_agent.health import Authorizations  # noqa: PLC0415 - the same

    authorizations = Authorizations(srk=read_authorization(srk_auth), key=read_authorization(auth))
    lock, since = state_dir / _LOCK, time.monotonic()
    report = check_command.check_now(state_dir, lock, run_dir, tcti=tcti, authorizations=authorizations)
    verdict, problem = None, None
    if wait is not None:
        try:
            verdict = check_command.wait_for_verdict(lock, run_dir, since=since, patience=wait)
        except TpmMtlsError as error:  # what was found at the TPM is told all the same
            problem = error
    answer(check_command.as_data(report, verdict), check_command.describe(report, verdict), as_json=as_json)
    problem = check_command.failure(report, verdict) or problem
    if problem is not None:
        raise problem


@agent.command(epilog="Example: tpm-mtls agent status --socket /run/tpmd.sock --json")
@socket_option(variable=SOCKET_VARIABLE)
@state_dir_option
@run_dir_option
@json_option
def status(*, socket: Path, state_dir: Path, run_dir: Path, as_json: bool) -> None:
    """Say which process listens at the socket, how full and how worn its memory is, how the TPM is, and what the
    backend said last; fails when none listens.

    The socket itself answers no such question, so only who may read the state folder learns of its memory.
    """  # noqa: D205 - one sentence
    from tpm_mtls_agent.status import describe, read_status  # noqa: PLC0415 - imports TPM libraries

    found = read_status(socket, state_dir, run_dir)
    if found.listener is None:
        if as_json:
            answer(found.as_dict(), "", as_json=True)
        raise PeerUnreachableError(
            f"no agent listens at {socket}", hint="start it: tpm-mtls agent run --help", host=str(socket)
        )
    answer(found.as_dict(), describe(found), as_json=as_json)


def _log_to_stderr() -> None:
    import logging  # noqa: PLC0415 - only `run` pays for it

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tpm-mtls: %(levelname)s: %(message)s"))
    logger = logging.getLogger("tpm_mtls_agent")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
