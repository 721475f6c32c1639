"""Sessions that keep secrets from the TPM's bus: salted to the storage root key, with encrypted parameters.

TPM 2.0 Library part 1 rev 1.59, 17.6 (sessions), 17.6.13 (salt), 21 (parameter encryption). Only the TPM that has the
storage root key can follow such a session. Which key that is, is either known from before (its Name), or it is the one
that the TPM names when it is first asked.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION
from tpm2_pytss.types import TPMT_SYM_DEF, TPMU_SYM_KEY_BITS, TPMU_SYM_MODE

from tpm_mtls.errors import (
    AuthorizationError,
    ForeignKeyError,
    HandleNotFoundError,
    StorageRootKeyChangedError,
    TpmLockoutError,
    TpmMemoryError,
    TpmRefusedError,
)
from tpm_mtls.tpm.ledger import Loaded
from tpm_mtls.tpm.storage_root import SRK_HANDLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.storage_root import StorageRootKey

INTO_TPM: Final = TPMA_SESSION.DECRYPT
"""The command's first parameter is encrypted: the TPM decrypts it."""

OUT_OF_TPM: Final = TPMA_SESSION.ENCRYPT
"""The response's first parameter is encrypted: the TPM encrypts it."""

_SUSPICIOUS: Final = (AuthorizationError, ForeignKeyError, HandleNotFoundError)
"""What a TPM answers, too, where the storage root key is another one than the session was salted to."""


class Sessions:
    """Salted sessions of an open TPM; each serves the commands of one block, and the last of them ends it.

    Attributes:
        expected: Name of the storage root key as it must be; none for whatever it is.
    """

    def __init__(self, resources: Resources, srk: StorageRootKey, expected: bytes | None) -> None:
        self._resources = resources
        self._context = resources.context
        self._srk = srk
        self.expected = expected

    def srk(self) -> PublicArea:
        """The storage root key, which is the expected one (one command the first time; three if it has to be made).

        It is only made where none is expected.

        Raises:
            StorageRootKeyChangedError: it is another one, or it is not there.
            HandleOccupiedError: what sits at its handle is no storage key.
        """
        if self.expected is None:
            made = self._srk.ensure()
            self.expected = made.name  # it stays the one, for this connection
            return made
        public = self._srk.read()
        if public is None or public.name != self.expected:
            raise _changed(self.expected, public)
        return public

    @contextmanager
    def hmac(self, direction: int) -> Iterator[Any]:
        """An HMAC session for the one command of the block, which carries a secret ``direction`` (one command).

        Raises:
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing secret was sent.
        """
        with self._started(TPM2_SE.HMAC) as session:
            self.encrypt(session, direction)
            yield session

    @contextmanager
    def policy(self) -> Iterator[Any]:
        """A policy session with SHA-256, for assertions and then the one command that ends the block (one command).

        Raises:
            as `hmac`.
        """
        with self._started(TPM2_SE.POLICY) as session:
            self.encrypt(session, 0)
            yield session

    def encrypt(self, session: Any, direction: int) -> None:  # noqa: ANN401 - an ESYS_TR, of a library without types
        """Lets ``session`` encrypt what its command carries ``direction``; the TPM ends it with that command."""
        self._context.trsess_set_attributes(session, TPMA_SESSION(direction))

    @contextmanager
    def _started(self, kind: TPM2_SE) -> Iterator[Any]:
        public = self.srk()
        with self.suspecting(public):
            started = self._start(kind, public)
            with self._resources.flushing(started):
                yield started
                self._resources.ended(started)

    def _start(self, kind: TPM2_SE, public: PublicArea) -> Any:  # noqa: ANN401 - as above
        cipher = TPMT_SYM_DEF(
            algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
        )
        with self._resources.referring(self._resources.refer_key(SRK_HANDLE, public)) as key:
            try:
                loaded = Loaded("policy" if kind == TPM2_SE.POLICY else "hmac")
                with self._resources.loading("start a session with the TPM", loaded):
                    started = self._context.start_auth_session(key, ESYS_TR.NONE, kind, cipher, TPM2_ALG.SHA256)
                    self._resources.register(started)
                    return started
            except TpmRefusedError as error:
                if not isinstance(error, TpmMemoryError | TpmLockoutError):
                    self._check_again(public, error)
                raise

    @contextmanager
    def suspecting(self, public: PublicArea) -> Iterator[None]:
        """Commands that count on the storage root key ``public``: where one is refused, whether it is still that one.

        Raises:
            StorageRootKeyChangedError: it is not (one command where something is refused).
        """
        try:
            yield
        except _SUSPICIOUS as error:
            self._check_again(public, error)
            raise

    def _check_again(self, public: PublicArea, error: TpmRefusedError) -> None:
        """Whether the storage root key, to which the session was salted, is still the one (one command)."""
        now = self._srk.read_again()
        if now is None or now.name != public.name:
            raise _changed(public.name, now) from error


class UnsaltedSessions(Sessions):
    """Sessions that keep no secret from the bus, and need no storage root key: for what carries none."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context

    @contextmanager
    def _started(self, kind: TPM2_SE) -> Iterator[Any]:
        nothing = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        loaded = Loaded("policy" if kind == TPM2_SE.POLICY else "hmac")
        with self._resources.loading("start a session with the TPM", loaded):
            started = self._context.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, kind, nothing, TPM2_ALG.SHA256)
            self._resources.register(started)
        with self._resources.flushing(started):
            yield started
            self._resources.ended(started)


def _changed(expected: bytes, found: PublicArea | None) -> StorageRootKeyChangedError:
    return StorageRootKeyChangedError(expected=expected, found=found.name if found is not None else None)
