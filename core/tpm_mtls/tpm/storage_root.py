"""The storage root key (SRK): parent of every key that this project makes.

At 0x81000001: Registry of Reserved TPM 2.0 Handles and Localities 1.1, table 2; TCG TPM v2.0 Provisioning Guidance 1.0
rev 1.0, table 2. It is made if absent. Whatever storage key sits there is used, an RSA one too; anything else is left
alone and named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tpm_mtls.errors import HandleNotFoundError, HandleOccupiedError, TpmRefusedError
from tpm_mtls.structures import Attribute
from tpm_mtls.tpm.boundary import public_area
from tpm_mtls.tpm.duplication import duplicate_for
from tpm_mtls.tpm.templates import attestation_template, signing_template, storage_root_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from tpm_mtls.authorization import Secret
    from tpm_mtls.structures import KeyAlgorithm, PublicArea
    from tpm_mtls.tpm.keys import Keys
    from tpm_mtls.tpm.values import LoadedKey

SRK_HANDLE = 0x81000001

_R = TypeVar("_R")


class StorageRootKey:
    """The SRK of an open TPM; `Tpm.srk` is the one to use.

    It is used without looking at it first (each look is a command). Only when the TPM answers that nothing is there it
    is created, and only when the TPM refuses it, it is read to say why.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known_absent = False
        self._public: PublicArea | None = None

    def read(self) -> PublicArea | None:
        """Its public area, none when there is no SRK (yet); one command the first time.

        Raises:
            HandleOccupiedError: what sits at its handle is no storage key.
        """
        if self._public is None and not self._known_absent:
            try:
                public = self._keys.read_public(SRK_HANDLE).public
            except HandleNotFoundError:
                self._known_absent = True
                return None
            _check(public)
            self._public = public
        return self._public

    def read_again(self) -> PublicArea | None:
        """As `read`, whatever was known of it (one command).

        Raises:
            as `read`.
        """
        self._public, self._known_absent = None, False
        return self.read()

    def assume(self, public: PublicArea) -> None:
        """It is ``public``, which was read before: spares the command. Sessions notice where it is not."""
        self._public, self._known_absent = public, False

    def ensure(self) -> PublicArea:
        """Its public area; creates it and makes it persistent if it is absent (three commands).

        Raises:
            HandleOccupiedError: what sits at its handle is no storage key.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        return self.read() or self._create()

    def create_key(
        self, algorithm: KeyAlgorithm, *, authorization: Secret | None = None, policy: bytes = b""
    ) -> LoadedKey:
        """A new TLS key under it, loaded; with ``policy`` (authPolicy, 32 bytes) only that lets it sign.

        Raises:
            AlgorithmUnsupportedError: this TPM does not have ``algorithm``.
            HandleOccupiedError: what sits at the SRK's handle is no storage key.
            AuthorizationError: the SRK has another authorization value (or, to create it, the owner hierarchy).
        """
        template = signing_template(algorithm, with_authorization=authorization is not None, policy=policy)
        return self._use(lambda: self._keys.create_child(SRK_HANDLE, template, authorization))

    def create_attestation_key(self) -> LoadedKey:
        """A new attestation key under it (ECC P-256, ECDSA with SHA-256, restricted), loaded.

        Raises:
            as `create_key`.
        """
        return self._use(lambda: self._keys.create_child(SRK_HANDLE, attestation_template(), None))

    def import_key(
        self,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
        algorithm: KeyAlgorithm,
        *,
        authorization: Secret | None = None,
    ) -> LoadedKey:
        """A TLS key made of the existing private ``key``, of ``algorithm``, under it, loaded.

        Raises:
            as `create_key`.
        """
        duplicate = duplicate_for(self.ensure(), key, algorithm, authorization)
        private = self._keys.import_duplicate(SRK_HANDLE, duplicate)
        return self._keys.load(SRK_HANDLE, public_area(duplicate.public), private, authorization)

    def _use(self, command: Callable[[], _R]) -> _R:
        if self._known_absent:
            self._create()
        try:
            return command()
        except HandleNotFoundError:
            self._create()
            return command()
        except TpmRefusedError:
            if self._public is None:
                self.read()  # a better reason, where what sits there is no storage key
            raise

    def _create(self) -> PublicArea:
        with self._keys.create_primary(storage_root_template()) as primary:
            public = primary.public
            try:
                self._keys.persist(primary, SRK_HANDLE)
            except HandleOccupiedError:
                public = self._keys.read_public(SRK_HANDLE).public  # somebody else was faster
                _check(public)
        self._known_absent = False
        self._public = public
        return public


def _check(public: PublicArea) -> None:
    if not public.is_storage_key or Attribute.FIXEDTPM not in public.attributes:
        raise HandleOccupiedError(
            f"the storage root key's handle {SRK_HANDLE:#010x} is occupied by something else: {public}",
            hint=f"find out whose it is; if nobody needs it, remove it: tpm2_evictcontrol -C o -c {SRK_HANDLE:#010x}",
            handle=SRK_HANDLE,
        )
