"""``tpm-mtls pki serve``."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.errors import UsageError
from tpm_mtls_pki.cli_common import ca_dir_option, passphrase_option

if TYPE_CHECKING:
    from pathlib import Path

_PORTS = 65536


@click.command(epilog="\b\nExample: tpm-mtls pki serve --ca-dir ./ca --listen 127.0.0.1:8443 --passphrase file:ca.pass")
@ca_dir_option
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--name", default="localhost", show_default=True, help="Host name in the server's own certificate.")
@click.option("--tls12", is_flag=True, help="Speak TLS 1.2 too, for old EST clients; 1.3 only by default.")
@passphrase_option("the issuing CA's passphrase, read once at the start,")
@json_option
def serve(ca_dir: Path, *, listen: str, name: str, tls12: bool, passphrase: str, as_json: bool) -> None:
    """Serve EST over HTTPS, until SIGTERM; prints the URL once it listens.

    Devices enroll with the evidence of their TPM (see: pki ek-roots, allow, group, approval) or with a token, and renew
    with their certificate. The CRL is kept fresh, in the folder's crl.pem and
    under /crl/issuing.crl. One JSON line for each decision goes to stderr.
    """
    import ssl  # noqa: PLC0415 - `pki --help` stays quick

    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - the same
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - the same
    from tpm_mtls_pki import serve as service  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same
    from tpm_mtls_pki.issuance import Registrar  # noqa: PLC0415 - the same

    host, port = parse_listen(listen)
    minimum = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    options = service.ServeOptions(host, port, check_device_name(name), minimum)

    def ready(url: str) -> None:
        answer({"url": url}, url, as_json=as_json)
        sys.stdout.flush()

    _log_to_stderr()
    with open_authority(ca_dir) as authority:
        issuer = authority.unlock(read_secret(passphrase, what="passphrase"))
        service.serve(Registrar(authority, issuer, utc_now), options, ready=ready)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port in ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        UsageError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) >= _PORTS:
        raise UsageError(f"not an address to listen at: {text[:80]!r}", hint="for example 127.0.0.1:8443")
    return host, int(port)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("tpm_mtls_pki")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
