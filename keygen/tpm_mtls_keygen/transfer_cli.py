"""``tpm-mtls keygen import`` and ``tpm-mtls keygen export``."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.authorization import read_authorization, read_secret
from tpm_mtls.cli_options import answer, auth_option, json_option, state_dir_option, storage_options, tcti_option
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.key_reference import KeyFile, parse_key_reference
from tpm_mtls_keygen.cli_common import created, form_options, key_form, key_option, open_for_keys

_LOST = """\
this key existed outside the TPM: whoever has a copy of it can still use it, and no CA can tell the copies apart
the TPM protects it from now on only; its attributes say that it was imported (no fixedTPM)
remove the source and all its copies: shred -u {source}
better still, make a new key inside the TPM: tpm-mtls keygen create"""


@click.command("import", epilog="Example: tpm-mtls keygen import --in old.key.pem --out device.key.pem")
@click.option(
    "--in",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The existing private key: a PEM file.",
)
@click.option("--passphrase", metavar="SOURCE", help="Its passphrase: prompt, file:PATH or credential:NAME.")
@form_options
@auth_option("the authorization value that the key gets in the TPM")
@storage_options
@tcti_option
@json_option
def import_(  # noqa: PLR0913 - one parameter per option
    *,
    source: Path,
    passphrase: str | None,
    out: Path | None,
    handle: str | None,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Bring an existing private key into the TPM.

    Better is a new key that no other place ever knew: keygen create. What is imported existed outside before, and every
    copy of it stays valid. Its attributes say so (no fixedTPM), and a CA can refuse it.
    """
    from tpm_mtls_keygen.keys import import_key  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.software_key import read_software_key  # noqa: PLC0415 - imports cryptography

    form = key_form(out, handle)
    software = read_software_key(source, passphrase=read_secret(passphrase, what="passphrase") if passphrase else None)
    authorization = read_authorization(auth, confirm=True)
    with open_for_keys(tcti, owner_auth, srk_auth) as tpm:
        key = import_key(tpm, software, form, authorization=authorization)
    for line in _LOST.format(source=source).splitlines():
        click.echo(f"tpm-mtls: warning: {line}", err=True)
    answer(created(key) | {"imported": True}, str(key.reference), as_json=as_json)


@click.command(epilog="Example: tpm-mtls keygen export --key device.key.pem --out with-policy.pem")
@key_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The PEM file (mode 0600); never overwrites.",
)
@state_dir_option
@json_option
def export(*, reference: str, out: Path, state_dir: Path, as_json: bool) -> None:
    """Write a key file with its policy inside, as the standard for TSS2 key files has it, for tools that know it.

    OpenSSL's tpm2 provider does not: for it keep the key file as it is, and the policy beside it. It remains a key that
    only this TPM can use.
    """
    from tpm_mtls.policy.files import find_signed_policies  # noqa: PLC0415 - `keygen --help` stays quick
    from tpm_mtls.policy.key_policy import key_policy  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls.tpm.tls_key import read_key_file  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.export import export_key  # noqa: PLC0415 - the same

    name = parse_key_reference(reference)
    if not isinstance(name, KeyFile):
        raise UsageError(f"{name} cannot be exported: the TPM does not give it out", hint="only key files can be")
    key = read_key_file(name.path)
    folders = [name.path.absolute().parent, state_dir]
    document = key_policy(key.public, folders).document
    signed, _ = find_signed_policies(folders)
    write_atomic(out, export_key(key, document, signed), mode=PRIVATE_FILE, replace=False)
    answer({"key": str(out), "has_policy": document is not None}, str(out), as_json=as_json)
