"""The trial ``encrypt``: a key that the TPM wraps and unwraps, and data encrypted with it."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tpm_mtls.errors import ForeignKeyError, PemError
from tpm_mtls.tpm_tools.trial import check_refused, check_same, require_storage_root

if TYPE_CHECKING:
    from tpm_mtls.tpm import Tpm
    from tpm_mtls.tpm_tools.trial import Trial

_MESSAGE: Final = b"what only this TPM can read"
_NONCE: Final = 12  # bytes, of AES-GCM: NIST SP 800-38D, 8.2


def try_wrapping(tpm: Tpm, trial: Trial) -> None:
    """Wraps and unwraps an AES key (9 commands; the storage root key is needed).

    Raises:
        StateError: there is no storage root key.
        EvidenceError: the TPM gives another key back, or one that was changed.
    """
    require_storage_root(tpm)
    key, nonce = AESGCM.generate_key(256), secrets.token_bytes(_NONCE)
    encrypted = AESGCM(key).encrypt(nonce, _MESSAGE, None)
    with trial.proving("the TPM wrapped a new AES-256 key under its storage root key"):
        wrapped = tpm.sealing.seal(key)
    with trial.proving("the TPM gave the key back, and what was encrypted with it was readable"):
        found = tpm.sealing.unseal(wrapped)
        check_same(found, key, "the key that came back is another one")
        check_same(AESGCM(found).decrypt(nonce, encrypted, None), _MESSAGE, "the message is another one")
    with trial.proving("a wrapped key with one bit changed was refused"):
        changed = replace(wrapped, private=wrapped.private[:-1] + bytes([wrapped.private[-1] ^ 1]))
        check_refused(lambda: tpm.sealing.unseal(changed), (ForeignKeyError, PemError), "a changed wrapped key")
