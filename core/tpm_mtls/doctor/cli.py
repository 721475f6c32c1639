"""``tpm-mtls doctor``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option, state_dir_option, tcti_option
from tpm_mtls.errors import UsageError

_EPILOG = """\b
Examples:
  tpm-mtls doctor
  tpm-mtls doctor --ca https://ca.example:8443 --backend https://backend.example:9443
  tpm-mtls doctor --bundle support.tar.gz
"""


@click.command(epilog=_EPILOG)
@state_dir_option
@tcti_option
@click.option("--ca", metavar="URL", help="Try this CA.  [default: the one that issued the device's certificate]")
@click.option("--backend", metavar="URL", help="Try this backend, with the device's certificate.")
@click.option(
    "--trust",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Certificates of whom to trust as CA and backend.  [default: ca.cert.pem of the identity folder]",
)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all that was found to FILE, a tar.gz for whoever helps; without keys and secrets.",
)
@json_option
def doctor(
    *,
    state_dir: Path,
    tcti: str | None,
    ca: str | None,
    backend: str | None,
    trust: Path | None,
    bundle: Path | None,
    as_json: bool,
) -> None:
    """Say what is wrong with this device's TPM, OpenSSL, identity or network, and what to do about it.

    Changes nothing. The exit status is 0 if there is no problem; warnings are none.
    """
    from tpm_mtls.doctor.bundle import write_bundle  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.doctor.diagnosis import Settings, diagnose  # noqa: PLC0415 - the same
    from tpm_mtls.doctor.presentation import as_data, as_text, failure  # noqa: PLC0415 - the same
    from tpm_mtls.doctor.servers import backend_peer, ca_peer  # noqa: PLC0415 - the same
    from tpm_mtls.files import refuse_existing  # noqa: PLC0415 - the same

    def now() -> datetime:
        return datetime.now(UTC)

    for each in (tcti, state_dir, trust):
        _check_readable(str(each or ""))
    peers = ([ca_peer(ca)] if ca else []) + ([backend_peer(backend)] if backend else [])
    if bundle is not None:
        refuse_existing(bundle)
    diagnosis = diagnose(Settings(tcti=tcti, folder=state_dir, trust=trust, peers=tuple(peers)), now=now)
    answer(as_data(diagnosis), as_text(diagnosis), as_json=as_json)
    if bundle is not None:
        write_bundle(bundle, diagnosis, now=now())
    if diagnosis.problems:
        raise failure(diagnosis)


def _check_readable(text: str) -> None:
    """The doctor's children and its answer speak JSON, which has no bytes that are no letters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        hint = "give the folder another name, or a link to it: ln -s"
        raise UsageError(f"{text!a} has bytes that are no UTF-8", hint=hint) from error
