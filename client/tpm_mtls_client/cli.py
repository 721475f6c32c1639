"""``tpm-mtls client``."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls.files import read_capped
from tpm_mtls_client.options import Settings, connection_options

if TYPE_CHECKING:
    from tpm_mtls_client.response import Response

_BODY_LIMIT = 16 * 1024 * 1024  # bytes sent; the same as an answer may have

_include_option = click.option("--include", is_flag=True, help="Print status and header fields before the body.")


@click.group(cls=CommandGroup)
def client() -> None:
    """Requests over mutual TLS, signed in the TPM.

    \b
    The identity is the one in --state-dir, or the one that --cert, --key and --trust name.
    """  # noqa: D301 - click's marker for a block that is not re-wrapped


@client.command(epilog="Example: tpm-mtls client get https://backend.example:8443/whoami")
@click.argument("url")
@_include_option
@connection_options
@json_option
def get(url: str, *, include: bool, settings: Settings, as_json: bool) -> None:
    """Send a GET request and print the answer's body: byte for byte, and on a terminal with a newline at the end."""
    _request("GET", url, settings=settings, include=include, as_json=as_json)


@client.command(
    epilog="""\b
Example: echo '{"temperature": 21.5}' | tpm-mtls client post https://backend.example:8443/telemetry --data-file -
"""
)
@click.argument("url")
@click.option("--data-file", required=True, metavar="FILE", help="What to send: a file, or - for the standard input.")
@click.option("--content-type", default="application/json", show_default=True, metavar="TYPE", help="What it is.")
@_include_option
@connection_options
@json_option
def post(url: str, *, data_file: str, content_type: str, include: bool, settings: Settings, as_json: bool) -> None:
    """Send a POST request and print the answer's body."""
    _request(
        "POST",
        url,
        settings=settings,
        include=include,
        as_json=as_json,
        body=_read_data(data_file),
        headers={"Content-Type": content_type},
    )


@client.command(epilog="Example: tpm-mtls client check backend.example:8443")
@click.argument("host", metavar="HOST[:PORT]")
@connection_options
@json_option
def check(host: str, *, settings: Settings, as_json: bool) -> None:
    """Explain a connection step by step, and why it fails if it does.

    Connects, does the handshake, and sends GET / to see whether the other side accepts our certificate.
    """
    from tpm_mtls_client.check import run_check  # noqa: PLC0415 - imports cryptography, which get and post do without

    report = run_check(host, settings)
    answer(report.as_data(), str(report), as_json=as_json)
    if report.error is not None:
        raise report.error


def _request(method: str, url: str, *, settings: Settings, include: bool, as_json: bool, **content: Any) -> None:  # noqa: ANN401 - body and headers
    from tpm_mtls_client.client import connect  # noqa: PLC0415 - `--help` needs neither ssl nor urllib3
    from tpm_mtls_client.timing import Timeout  # noqa: PLC0415 - the same

    with connect(
        settings.identity,
        tcti=settings.tcti,
        relay=settings.relay,
        authorization=settings.authorization,
        minimum_version=settings.minimum_version,
        timeout=Timeout.within(settings.seconds),
    ) as connection:
        response = connection.request(method, url, **content)
    _print(response, include=include, as_json=as_json)


def _print(response: Response, *, include: bool, as_json: bool) -> None:
    """The body of a success goes to stdout; a refusal is an error, and goes there only when the script asked for it."""
    if as_json:
        answer(_as_data(response), "", as_json=True)
        response.raise_for_status()
        return
    from tpm_mtls.streams import write_raw  # noqa: PLC0415 - `client --help` stays quick

    if include:
        lines = [f"HTTP {response.status}", *(f"{name}: {value}" for name, value in response.headers.items()), "", ""]
        write_raw("\r\n".join(lines).encode())
    response.raise_for_status()
    write_raw(response.body)


def _as_data(response: Response) -> dict[str, Any]:
    data: dict[str, Any] = {"status": response.status, "headers": dict(response.headers)}
    try:
        data["body"] = response.body.decode()
    except UnicodeDecodeError:
        data["body_base64"] = base64.b64encode(response.body).decode()
    return data


def _read_data(source: str) -> bytes:
    if source != "-":
        return read_capped(Path(source), limit=_BODY_LIMIT)
    if sys.stdin.isatty():
        raise UsageError("nothing is piped into the standard input", hint="for example: echo '{}' | tpm-mtls client …")
    data = sys.stdin.buffer.read(_BODY_LIMIT + 1)
    if len(data) > _BODY_LIMIT:
        raise UsageError(f"the standard input has more than {_BODY_LIMIT} bytes", hint="send less at once")
    return data
