"""``tpm-mtls simulator``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpm_mtls.cli_options import answer, json_option, progress
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import SimulatorError
from tpm_mtls_simulator.simulator import Simulator

_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of this simulated TPM: its state, certificates and log.",
)


@click.group(cls=CommandGroup)
def simulator() -> None:
    """A simulated TPM, for development: swtpm with an endorsement-key certificate.

    Its state lies in one folder and nowhere else; several can run at once. Its keys are as safe as that folder is:
    never use one for a device in the field.
    """


@simulator.command(epilog='Example: export TPM_MTLS_TCTI="$(tpm-mtls simulator start --dir /tmp/tpm)"')
@_folder_option
@click.option(
    "--ca",
    type=click.Path(file_okay=False, path_type=Path),
    help="The simulated TPM maker's CA folder.  [default: DIR/ca]",
)
@click.option(
    "--port", type=click.IntRange(1024, 65534), help="TCP port; the next one is taken as well.  [default: a free one]"
)
@click.option(
    "--ek-cert/--no-ek-cert", default=True, help="Make endorsement keys with certificates (a second the first time)."
)
@json_option
def start(folder: Path, *, ca: Path | None, port: int | None, ek_cert: bool, as_json: bool) -> None:
    """Start it (a running one stays as it is) and print its TCTI string."""
    device = Simulator(folder)
    if not device.state.exists():
        progress("manufacturing a TPM: seeds, endorsement keys, certificates …")
    status = device.start(ca=ca.absolute() if ca else None, ek_certificates=ek_cert, port=port)
    answer({"running": True, "tcti": status.tcti, "pid": status.pid}, status.tcti, as_json=as_json)


@simulator.command(epilog="Example: tpm-mtls simulator stop --dir /tmp/tpm")
@_folder_option
@click.option("--power-cut", is_flag=True, help="Do not shut it down first: a TPM may count that as a wrong password.")
@json_option
def stop(folder: Path, *, power_cut: bool, as_json: bool) -> None:
    """Stop it, as a machine does that is switched off; its non-volatile state stays in the folder."""
    stopped = Simulator(folder).stop(power_cut=power_cut)
    answer({"running": False, "stopped": stopped}, "stopped" if stopped else "it was not running", as_json=as_json)


@simulator.command(epilog='\b\nExample: tpm2_getcap -T "$(tpm-mtls simulator status --dir /tmp/tpm)" properties-fixed')
@_folder_option
@json_option
def status(folder: Path, *, as_json: bool) -> None:
    """Print the TCTI string of a running one; fails when it does not run."""
    found = Simulator(folder).status()
    data: dict[str, Any] = {"running": bool(found and found.running), "tcti": found.tcti if found else None}
    if found is None or not found.running:
        if as_json:
            answer(data, "", as_json=True)
        raise SimulatorError(
            f"no simulated TPM runs in {folder}", hint=f"start it: tpm-mtls simulator start --dir {folder}"
        )
    answer(data | {"pid": found.pid}, found.tcti, as_json=as_json)
