"""``tpm-mtls openssl-env``: the same identity for curl, nginx, openssl, and every other program that uses OpenSSL."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli_options import answer, json_option, relay_option, state_dir_option, tcti_option

if TYPE_CHECKING:
    from tpm_mtls.configuration import RelayUse

_CONFIGURATION = "openssl.cnf"

_EPILOG = """\b
Example, with an identity whose key is a TSS2 PEM file (first-boot --key tss2):
  eval "$(tpm-mtls openssl-env)"
  cd /var/lib/tpm-mtls
  curl --cacert ca.cert.pem --capath /dev/null --cert device.cert.pem --key device.key.pem \\
    https://backend.example/whoami
  openssl s_client -connect backend.example:443 -CAfile ca.cert.pem \\
    -cert device.cert.pem -cert_chain device.cert.pem -key device.key.pem
\b
A key at a persistent handle, in programs that take OpenSSL's key URIs (curl takes files only):
  openssl s_client … -key handle:0x81000100
  openssl pkey -in handle:0x81000100 -pubout
\b
nginx takes over only what its configuration names, at the top:
  env OPENSSL_CONF; env OPENSSL_MODULES; env TPM2OPENSSL_TCTI;

Never start the TPM's own programs (swtpm, tpm2-abrmd) in this environment: they would wait for themselves.
"""


@click.command("openssl-env", epilog=_EPILOG)
@state_dir_option
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"Where the OpenSSL configuration is or shall be.  [default: {_CONFIGURATION} in the state folder]",
)
@click.option("--key", metavar="KEY", help="The key, if it is not in the state folder: its policy lies beside it.")
@tcti_option
@relay_option
@json_option
def openssl_env(
    *,
    state_dir: Path,
    config: Path | None,
    key: str | None,
    tcti: str | None,
    relay: RelayUse | None,
    as_json: bool,
) -> None:
    """Print the environment in which any OpenSSL program uses keys in the TPM.

    Writes an OpenSSL configuration once, and prints shell commands that export OPENSSL_CONF, OPENSSL_MODULES and
    TPM2OPENSSL_TCTI. The TPM itself is not asked. Where the key has a policy, TPM2OPENSSL_TCTI starts the TPM relay,
    which satisfies it; --relay always does so for every key, and saves TPM commands.
    """
    from tpm_mtls.files import make_folder  # noqa: PLC0415 - only when the command runs
    from tpm_mtls.key_reference import parse_key_reference  # noqa: PLC0415 - the same
    from tpm_mtls.openssl.configuration import environment, write_configuration  # noqa: PLC0415 - imports ssl
    from tpm_mtls.relay import key_tcti, policy_folders  # noqa: PLC0415 - only when the command runs

    path = config or state_dir / _CONFIGURATION
    folders = list(dict.fromkeys([*(policy_folders(parse_key_reference(key)) if key else []), state_dir]))
    variables = environment(path, key_tcti(tcti, folders, relay=relay))
    if config is None:
        make_folder(state_dir)
    write_configuration(path)
    exports = (f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    answer(variables, "\n".join(exports), as_json=as_json)
