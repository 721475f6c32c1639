"""Key agreement with a key in the TPM: TPM2_ECDH_KeyGen and TPM2_ECDH_ZGen.

TPM 2.0 Library part 3 rev 1.59, 14.4 and 14.5; part 1, C.6.1 (one-pass Diffie-Hellman, NIST SP 800-56A). A point is
written as SEC 1 version 2.0, 2.3.3 has it, uncompressed: 4, x, y; a shared secret is x of a point (3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_ECC_POINT, TPMS_ECC_POINT

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import CredentialError, TpmRefusedError
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm.boundary import says_damaged
from tpm_mtls.tpm.sessions import OUT_OF_TPM
from tpm_mtls.tpm.storage_root import SRK_HANDLE
from tpm_mtls.tpm.templates import key_agreement_template

if TYPE_CHECKING:
    from tpm_mtls.tpm.keys import Keys
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.sessions import Sessions
    from tpm_mtls.tpm.values import LoadedKey

_UNCOMPRESSED: Final = b"\x04"
_COORDINATES: Final = {KeyAlgorithm.ECC_P256: 32, KeyAlgorithm.ECC_P384: 48}  # bytes of one


@dataclass(frozen=True)
class Agreement:
    """What two sides agree on.

    Attributes:
        share: what the other side needs: the ephemeral public key, as a point.
        secret: what both sides know then; to be put through a key derivation before it is used.
    """

    share: bytes
    secret: Secret


class KeyAgreement:
    """Key agreement with an open TPM; `Tpm.key_agreement` is the one to use. Secrets cross the bus encrypted."""

    def __init__(self, keys: Keys, resources: Resources, sessions: Sessions) -> None:
        self._keys = keys
        self._resources = resources
        self._context = resources.context
        self._sessions = sessions

    def create_key(self, algorithm: KeyAlgorithm = KeyAlgorithm.ECC_P256) -> LoadedKey:
        """A new key for key agreement only, under the storage root key, loaded (one command).

        Raises:
            HandleNotFoundError: there is no storage root key; none is made.
            AlgorithmUnsupportedError: this TPM does not have ``algorithm``.
        """
        return self._keys.create_child(SRK_HANDLE, key_agreement_template(algorithm), None)

    def begin(self, key: LoadedKey) -> Agreement:
        """A secret for the owner of ``key``, by an ephemeral key that the TPM makes and forgets (two commands).

        Only the public half of ``key`` is used: this is what the other side does, if it has a TPM, too.

        Raises:
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        size = _size(key)
        with self._sessions.hmac(OUT_OF_TPM) as session, self._resources.command("make an ephemeral key"):
            secret, share = self._context.ecdh_key_gen(ESYS_TR(key.resource), session1=session)
        x, y = (bytes(each).rjust(size, b"\0") for each in (share.point.x, share.point.y))
        return Agreement(_UNCOMPRESSED + x + y, _shared(secret, size))

    def finish(self, key: LoadedKey, share: bytes) -> Secret:
        """The secret that whoever made ``share`` for ``key`` knows, too (two commands).

        Args:
            key: from `create_key`.
            share: the other side's ephemeral public key, as a point. Whether it is on the curve, the TPM checks.

        Raises:
            CredentialError: ``share`` is no point of the key's curve.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        size = _size(key)
        if len(share) != 1 + 2 * size or not share.startswith(_UNCOMPRESSED):
            raise _no_point()
        point = TPM2B_ECC_POINT(TPMS_ECC_POINT(x=share[1 : 1 + size], y=share[1 + size :]))
        try:
            with self._sessions.hmac(OUT_OF_TPM) as session, self._resources.command("agree on a secret"):
                return _shared(self._context.ecdh_zgen(ESYS_TR(key.resource), point, session1=session), size)
        except TpmRefusedError as error:
            if not says_damaged(error):
                raise
            raise _no_point() from error


def _size(key: LoadedKey) -> int:
    return _COORDINATES[KeyAlgorithm(key.public.algorithm)]


def _shared(point: TPM2B_ECC_POINT, size: int) -> Secret:
    return Secret(bytes(point.point.x).rjust(size, b"\0"))


def _no_point() -> CredentialError:
    return CredentialError(
        "the other side's share is no point of the key's curve",
        hint="it must send its ephemeral public key, uncompressed, of the same curve",
    )
