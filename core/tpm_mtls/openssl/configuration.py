"""The environment in which any OpenSSL program finds the tpm2 provider and the TPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.files import read_capped, write_atomic
from tpm_mtls.openssl.provider import modules_folder

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = """\
# Written by "tpm-mtls openssl-env": OpenSSL's default provider, then the one for keys in a TPM.
# "default" must be named, first, and its section must not have the same name: see config(5).
openssl_conf = openssl_init

[openssl_init]
providers = provider_sect

[provider_sect]
default = default_sect
tpm2 = tpm2_sect

[default_sect]
activate = 1

[tpm2_sect]
activate = 1
"""


def write_configuration(path: Path) -> None:
    """Makes ``path`` an OpenSSL configuration that activates the provider; one that is there already stays.

    Raises:
        StorageError: it cannot be written.
        PemError: something much larger is there.
    """
    if not path.exists() or read_capped(path) != CONFIGURATION.encode():
        write_atomic(path, CONFIGURATION.encode())


def environment(configuration: Path, tcti: str) -> dict[str, str]:
    """The variables with which a program loads ``configuration``, finds the provider and speaks to the TPM at ``tcti``.

    Raises:
        ProviderMissingError: there is no provider.
    """
    return {
        "OPENSSL_CONF": str(configuration.absolute()),
        "OPENSSL_MODULES": str(modules_folder().absolute()),
        "TPM2OPENSSL_TCTI": tcti,
    }
