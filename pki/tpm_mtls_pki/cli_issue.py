"""``tpm-mtls pki issue``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.errors import UsageError
from tpm_mtls_pki.cli_common import ca_dir_option, passphrase_option

if TYPE_CHECKING:
    from tpm_mtls_pki.csr import CheckedCsr
    from tpm_mtls_pki.profiles import Subject


@click.command(
    epilog="\b\nExample: tpm-mtls pki issue --csr s.csr --profile server --name localhost --ip 127.0.0.1 --out s.pem"
)
@ca_dir_option
@click.option("--csr", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="A CSR, PEM or DER.")
@click.option(
    "--public-key", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="A public key, PEM or DER."
)
@click.option("--profile", type=click.Choice(["device", "server", "operator"]), required=True, help="What it is for.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="A device's or host name (a server may have several), or an operator's mail address.",
)
@click.option("--ip", "addresses", multiple=True, metavar="ADDRESS", help="IP address of a server.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Where the chain goes: the certificate, then the issuing CA's.  [default: printed]",
)
@passphrase_option("the issuing CA's passphrase")
@json_option
def issue(  # noqa: PLR0913 - one argument for each option
    ca_dir: Path,
    *,
    csr: Path | None,
    public_key: Path | None,
    profile: str,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    out: Path | None,
    passphrase: str,
    as_json: bool,
) -> None:
    """Issue a certificate for the key of a CSR. Its names are those given here; the CSR's are ignored."""
    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls.certificates import certificates_pem  # noqa: PLC0415 - the same
    from tpm_mtls.files import write_atomic  # noqa: PLC0415 - the same
    from tpm_mtls_pki import issuance  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same
    from tpm_mtls_pki.profiles import PROFILES  # noqa: PLC0415 - the same
    from tpm_mtls_pki.records import serial_text  # noqa: PLC0415 - the same

    subject = _subject(profile, names, addresses)
    checked = _key(csr, public_key)
    with open_authority(ca_dir) as authority:
        issuer = authority.unlock(read_secret(passphrase, what="passphrase"))
        registrar = issuance.Registrar(authority, issuer, utc_now)
        issued = registrar.issue(PROFILES[profile], subject, checked)
        pem = certificates_pem([issued.certificate, authority.issuing])
    if out is not None:
        write_atomic(out, pem)
    for request in issued.ignored:
        click.echo(f"tpm-mtls: ignored in the request: {request}", err=True)
    serial = serial_text(issued.certificate)
    data = {"serial": serial, "subject": subject.name, "ignored": issued.ignored, "pem": pem.decode()}
    answer(data, f"{out}\n{serial}" if out else pem.decode().rstrip(), as_json=as_json)


def _subject(profile: str, names: tuple[str, ...], addresses: tuple[str, ...]) -> Subject:
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls.operator_names import check_operator_name  # noqa: PLC0415 - the same
    from tpm_mtls_pki.profiles import Subject  # noqa: PLC0415 - the same

    if profile == "operator":
        if len(names) != 1 or addresses:
            raise UsageError(
                "an operator has one name and no address",
                hint="give --name once, such as alice@example.com, and no --ip",
            )
        return Subject.operator(check_operator_name(names[0]))
    checked = tuple(check_device_name(name) for name in names)
    if profile == "device":
        if len(checked) != 1 or addresses:
            raise UsageError("a device has one name and no address", hint="give --name once, and no --ip")
        return Subject.device(checked[0])
    if not checked and not addresses:
        raise UsageError("a server needs a name or an address", hint="give --name or --ip")
    try:
        parsed = tuple(ipaddress.ip_address(address) for address in addresses)
    except ValueError as error:
        raise UsageError(str(error).lower(), hint="give --ip like 192.0.2.7 or 2001:db8::7") from error
    return Subject(name=checked[0] if checked else str(parsed[0]), dns=checked, addresses=parsed)


def _key(csr: Path | None, public_key: Path | None) -> CheckedCsr:
    from tpm_mtls.files import read_capped  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.csr import CheckedCsr, check_csr, parse_public_key  # noqa: PLC0415 - the same

    if csr is not None and public_key is None:
        return check_csr(read_capped(csr))
    if public_key is not None and csr is None:
        return CheckedCsr(parse_public_key(read_capped(public_key)))
    raise UsageError("a CSR or a public key is needed", hint="give either --csr or --public-key")
