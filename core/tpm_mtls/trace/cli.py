"""``tpm-mtls trace``."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.cli_options import tcti_option

_EPILOG = """\b
Examples:
  tpm-mtls trace -- tpm-mtls client get https://backend.example/whoami
  tpm-mtls trace --pcap handshake.pcapng -- curl --cert device.cert.pem --key device.key.pem https://backend.example
  tpm-mtls trace --json --out trace.jsonl -- tpm2_getrandom --hex 8
"""


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT]…")
@tcti_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the trace there.  [default: stderr]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: each command, then the summary.")
@click.option(
    "--pcap",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Capture the commands for Wireshark too, in a new file that only you can read. Authorization values, NV data, "
    "sealed data and the like are zeros in it.",
)
@click.option(
    "--metrics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add counters to this file, in Prometheus' text form.",
)
@click.option(
    "--latency-model",
    "model",
    metavar="NAME|FILE",
    help="Answer as slowly as that chip would, such as chip or slb9670.",
)
def trace(
    *,
    command: tuple[str, ...],
    tcti: str | None,
    out: Path | None,
    as_json: bool,
    pcap: Path | None,
    metrics: Path | None,
    model: str | None,
) -> int:
    """Run a program and show every command that reaches the TPM.

    Each line says when, how long the TPM took, which command, with which key, and how it ended; signatures are marked.
    Nothing that could be a secret is shown. The program's own input, output and exit status are untouched. It is told
    where the TPM is by TPM_MTLS_TCTI, TPM2OPENSSL_TCTI, TPM2TOOLS_TCTI and TPM2_PKCS11_TCTI; where an option of its own
    says otherwise, nothing is seen.
    """
    from tpm_mtls.trace.command import Request, run  # noqa: PLC0415 - only this command pays for it

    return run(Request(command, tcti=tcti, out=out, as_json=as_json, pcap=pcap, metrics=metrics, model=model))
