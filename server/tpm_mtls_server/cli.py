"""``tpm-mtls server``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import auth_option, json_option, relay_option, tcti_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.durations import parse_duration
from tpm_mtls_server.operators.cli_common import DEFAULT_DATABASE
from tpm_mtls_server.operators.device_cli import device
from tpm_mtls_server.operators.group_cli import group

if TYPE_CHECKING:
    from tpm_mtls.configuration import RelayUse

_file = click.Path(dir_okay=False, path_type=Path)
_EXAMPLE = (
    "\b\nExample: tpm-mtls server run --listen 127.0.0.1:8443 --cert server.cert.pem --key handle:0x81000100 "
    "--client-ca ca.cert.pem --crl ca.crl.pem"
)


class _ListenAddress(click.ParamType["tuple[str, int]"]):
    """``HOST:PORT``, with an IPv6 address in brackets."""

    name = "host:port"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """The host and the port."""
        match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]\s]+)):(?P<port>[0-9]{1,5})", str(value))
        if match is None or int(match["port"]) > 0xFFFF:  # noqa: PLR2004 - the highest TCP port
            self.fail("expected HOST:PORT, such as 127.0.0.1:8443 or [::1]:0", param, ctx)
        return match["v6"] or match["host"], int(match["port"])


@click.group(cls=CommandGroup)
def server() -> None:
    """The backend that devices talk to over mutual TLS."""


server.add_command(device)
server.add_command(group)


@server.command(epilog=_EXAMPLE)
@click.option(
    "--listen",
    type=_ListenAddress(),
    default="127.0.0.1:8443",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@click.option("--cert", type=_file, required=True, help="The server's certificate, then its issuers, in PEM.")
@click.option("--key", required=True, metavar="KEYREF", help="Its key: a PEM file (TSS2 or software) or handle:0x….")
@click.option("--client-ca", type=_file, required=True, help="The CA of the devices, in PEM.")
@click.option("--crl", type=_file, help="The CRL of that CA, PEM or DER; read again when it changes.")
@click.option(
    "--database", metavar="URL", default=DEFAULT_DATABASE, show_default=True, help="Where telemetry and registry are."
)
@click.option(
    "--require-attestation",
    metavar="PATH",
    multiple=True,
    help="Only for devices that showed what they booted, such as /telemetry; may be repeated.",
)
@click.option(
    "--attestation-lifetime",
    callback=lambda _context, _parameter, text: parse_duration(text),
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="How long a quote counts that passed.",
)
@click.option(
    "--max-connections", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Connections at once."
)
@click.option("--tls12", is_flag=True, help="Accept TLS 1.2 too, not only 1.3.")
@tcti_option
@relay_option
@auth_option()
@json_option
def run(  # noqa: PLR0913 - one parameter per option
    *,
    listen: tuple[str, int],
    cert: Path,
    key: str,
    client_ca: Path,
    crl: Path | None,
    database: str,
    require_attestation: tuple[str, ...],
    attestation_lifetime: float,
    max_connections: int,
    tls12: bool,
    tcti: str | None,
    relay: RelayUse | None,
    auth: str | None,
    as_json: bool,
) -> None:
    """Serve devices that show a certificate of our CA; print the URL once it listens.

    \b
    GET  /whoami             who is calling, as the server sees it
    POST /telemetry          store a JSON object of at most 64 KiB
    GET  /healthz            store, CRL and the server's own certificate
    POST /attestation/nonce  a nonce for a quote
    POST /attestation        show what was booted: a quote and its logs
    POST /health             report the TPM's health

    Operators, who have certificates of another profile, get /operator/devices and /metrics.

    One log line per request goes to stderr. SIGHUP reads certificate and key again, SIGTERM finishes what runs and
    ends.
    """  # noqa: D301 - click's marker for a block that is not re-wrapped
    import asyncio  # noqa: PLC0415 - only this command pays for it
    from datetime import timedelta  # noqa: PLC0415 - the same

    from tpm_mtls.authorization import read_authorization  # noqa: PLC0415 - the same
    from tpm_mtls.cli_options import answer  # noqa: PLC0415 - the same
    from tpm_mtls.identity import Identity  # noqa: PLC0415 - the same
    from tpm_mtls.key_reference import parse_key_reference  # noqa: PLC0415 - the same
    from tpm_mtls_server import service  # noqa: PLC0415 - the same
    from tpm_mtls_server.logs import log_to_stderr  # noqa: PLC0415 - the same
    from tpm_mtls_server.settings import Limits, Settings  # noqa: PLC0415 - the same

    settings = Settings(
        host=listen[0],
        port=listen[1],
        identity=Identity(key=parse_key_reference(key), certificate=cert, trust=client_ca),
        crl=crl,
        database=database,
        require_attestation=require_attestation,
        attestation_lifetime=timedelta(seconds=attestation_lifetime),
        tcti=tcti,
        relay=relay,
        authorization=read_authorization(auth),
        tls12=tls12,
        limits=Limits(connections=max_connections),
    )
    log_to_stderr()
    asyncio.run(service.run(settings, announce=lambda url: answer({"url": url}, url, as_json=as_json)))
