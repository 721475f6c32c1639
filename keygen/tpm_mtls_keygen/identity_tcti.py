"""The way to the TPM for the key of an identity folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.relay import key_tcti, relay_tcti
from tpm_mtls.tcti import resolve_tcti

if TYPE_CHECKING:
    from pathlib import Path


def identity_tcti(tcti: str | None, folder: Path, *, policy: bool = False) -> str:
    """The TCTI string for the key of the identity ``folder``: of the relay where it has, or will have, a ``policy``.

    Raises:
        TctiInvalidError, TpmUnavailableError: as `key_tcti`.
    """
    if policy:
        return relay_tcti(resolve_tcti(tcti), policies=[folder])
    return key_tcti(tcti, [folder])
