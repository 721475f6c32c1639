"""``tpm-mtls pki ek-roots``: the TPM makers that are trusted."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls_pki.cli_common import ca_dir_option, print_table


@click.group("ek-roots", cls=CommandGroup)
def ek_roots() -> None:
    """The TPM makers' CAs: whose chips are genuine.

    TPM makers publish the roots of their endorsement-key certificates. A chip of a trusted maker still waits for your
    approval, unless it is on the allow-list or its group says otherwise (pki allow, pki group).
    """


@ek_roots.command(epilog="\b\nExample: tpm-mtls pki ek-roots add --ca-dir ./ca maker-root.pem maker-intermediates.pem")
@ca_dir_option
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE...")
@json_option
def add(ca_dir: Path, *, files: tuple[Path, ...], as_json: bool) -> None:
    """Trust the CA certificates in FILEs (PEM, or one in DER): all of them or none.

    Self-signed ones become trust anchors; the others only lead to such an anchor.
    """
    from tpm_mtls.files import read_capped  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki import ek_roots as store  # noqa: PLC0415 - the same
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    certificates = [each for file in files for each in store.parse_file(read_capped(file), name=str(file))]
    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        added = store.add(connection, certificates, now=utc_now())
    rows = [{"fingerprint": each.fingerprint, "root": each.is_root, "subject": each.subject} for each in added]
    text = "\n".join(
        f"{each.fingerprint} {'root' if each.is_root else 'intermediate'} {each.subject}" for each in added
    )
    answer({"ek_roots": rows}, text, as_json=as_json)


@ek_roots.command("list", epilog="Example: tpm-mtls pki ek-roots list --ca-dir ./ca")
@ca_dir_option
@json_option
def list_ek_roots(ca_dir: Path, *, as_json: bool) -> None:
    """List them, with the SHA-256 of their certificates."""
    from tpm_mtls_pki import ek_roots as store  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.reading() as connection:
        found = store.listing(connection)
    print_table(
        "ek_roots",
        [
            {
                "fingerprint": each.fingerprint,
                "root": each.is_root,
                "not_after": each.certificate.not_valid_after_utc.isoformat(),
                "subject": each.subject,
            }
            for each in found
        ],
        empty="no TPM maker is trusted",
        wrap=["subject"],
        as_json=as_json,
    )


@ek_roots.command(epilog="\b\nExample: tpm-mtls pki ek-roots remove --ca-dir ./ca --fingerprint 3f0c12ab77de")
@ca_dir_option
@click.option("--fingerprint", required=True, metavar="HEX", help="Its SHA-256, or how that begins (8 digits).")
@json_option
def remove(ca_dir: Path, *, fingerprint: str, as_json: bool) -> None:
    """Stop trusting one. Certificates that were issued stay valid; renewals will be refused."""
    from tpm_mtls_pki import ek_roots as store  # noqa: PLC0415 - `pki --help` stays quick
    from tpm_mtls_pki.authority import open_authority  # noqa: PLC0415 - the same
    from tpm_mtls_pki.clock import utc_now  # noqa: PLC0415 - the same

    with open_authority(ca_dir) as authority, authority.database.writing() as connection:
        removed = store.remove(connection, fingerprint, now=utc_now())
    data = {"removed": removed.fingerprint, "subject": removed.subject}
    answer(data, f"no longer trusted: {removed.subject}", as_json=as_json)
