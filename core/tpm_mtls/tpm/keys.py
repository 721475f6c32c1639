"""Keys in an open TPM: made, loaded, kept at handles, removed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import (
    TPM2B_PRIVATE,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_TEMPLATE,
    TPMS_SENSITIVE_CREATE,
)

from tpm_mtls.errors import (
    ForeignKeyError,
    HandleNotFoundError,
    HandleOccupiedError,
    PemError,
    TpmRefusedError,
)
from tpm_mtls.tpm.boundary import public_area, says_damaged, sized_public
from tpm_mtls.tpm.capabilities import read_persistent_handles
from tpm_mtls.tpm.ledger import Loaded
from tpm_mtls.tpm.templates import hierarchy_parent_template, without_unique
from tpm_mtls.tpm.values import LoadedKey, PersistentObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tpm_mtls.authorization import Secret
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm.duplication import Duplicate
    from tpm_mtls.tpm.resources import Resources

OWNER_HIERARCHY = 0x40000001
"""TPM_RH_OWNER: part 2, 7.4."""

_NO_COMMAND = 0x143  # TPM_RC_COMMAND_CODE: part 2, 6.6.3
_NV_DEFINED = 0x14C  # TPM_RC_NV_DEFINED


class Keys:
    """The keys of an open TPM; `tpm_mtls.tpm.connection.Tpm` is one."""

    def __init__(self, resources: Resources, srk_authorization: Secret | None) -> None:
        self._resources = resources
        self._context = resources.context
        self._srk_authorization = srk_authorization

    def persistent_handles(self) -> tuple[int, ...]:
        """All persistent handles in use, of every hierarchy (one command for each 64)."""
        with self._command("list the persistent handles"):
            return read_persistent_handles(self._context)

    def read_public(self, handle: int) -> PersistentObject:
        """What sits at the persistent ``handle`` (one command).

        Raises:
            HandleNotFoundError: nothing does.
        """
        with self._resources.reference(handle) as resource, self._command(f"read what is at {handle:#010x}"):
            public, _, qualified_name = self._context.read_public(resource)
        return PersistentObject(handle, public_area(public), bytes(qualified_name))

    def create_primary(self, template: bytes) -> LoadedKey:
        """The owner hierarchy's primary key for ``template`` (a marshalled TPMT_PUBLIC), loaded (one command).

        Raises:
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        loaded = Loaded("object", public=without_unique(template).hex())
        with self._resources.loading("create a primary key", loaded, option="--owner-auth"):
            resource, public, *_ = self._context.create_primary(None, sized_public(template))
            return self._loaded(resource, public_area(public))

    def create_child(self, parent: int, template: bytes, authorization: Secret | None) -> LoadedKey:
        """A new key under the persistent ``parent``, loaded (one command, two where CreateLoaded is missing).

        Raises:
            HandleNotFoundError: nothing is at ``parent``.
            AlgorithmUnsupportedError: this TPM does not have what ``template`` wants.
            AuthorizationError: the parent has another authorization value.
        """
        sensitive = TPM2B_SENSITIVE_CREATE(
            sensitive=TPMS_SENSITIVE_CREATE(userAuth=authorization.value if authorization else b"")
        )
        with self._parent(parent) as resource:
            try:
                with self._command("create a key", option="--srk-auth"):
                    handle, private, public = self._context.create_loaded(resource, sensitive, TPM2B_TEMPLATE(template))
                    return self._loaded(handle, public_area(public), bytes(private), authorization)
            except TpmRefusedError as error:
                if error.rc != _NO_COMMAND:
                    raise
            with self._command("create a key", option="--srk-auth"):
                private, public, *_ = self._context.create(resource, sensitive, sized_public(template))
        return self.load(parent, public_area(public), bytes(private), authorization)

    def import_duplicate(self, parent: int, duplicate: Duplicate) -> bytes:
        """A key from outside, encrypted to the persistent ``parent``, as that parent's own child (one command).

        Returns:
            Content of TPM2B_PRIVATE, for `load`.
        """
        with self._parent(parent) as resource, self._command("import the key", option="--srk-auth"):
            return bytes(
                self._context.import_(
                    resource, b"", duplicate.public, duplicate.private, duplicate.seed, duplicate.inner_algorithm
                )
            )

    def load(
        self,
        parent: int,
        public: PublicArea,
        private: bytes,
        authorization: Secret | None,
        *,
        rsa_parent: bool = False,
    ) -> LoadedKey:
        """A key that was made before, loaded again (one command; three where the parent is the owner hierarchy).

        Args:
            parent: a persistent handle, or `OWNER_HIERARCHY` for its standard primary key.
            public: its public area.
            private: content of its TPM2B_PRIVATE.
            authorization: its authorization value, for later use.
            rsa_parent: whether the owner hierarchy's standard primary key is the RSA-2048 one.

        Raises:
            ForeignKeyError: it was made by another TPM, or this one was cleared since; or it is damaged where only the
                TPM that made it could tell.
            PemError: it is damaged.
        """
        try:
            with (
                self._parent(parent, rsa=rsa_parent) as resource,
                self._resources.loading(
                    "load the key", Loaded("object", public=public.data.hex()), option="--srk-auth"
                ),
            ):
                handle = self._context.load(resource, TPM2B_PRIVATE(private), sized_public(public.data))
                return self._loaded(handle, public, private, authorization)
        except HandleNotFoundError as error:
            raise ForeignKeyError(
                f"cannot load the key: its parent {parent:#010x} is not in this TPM",
                hint="use it on the device that made it, or make a new key: tpm-mtls keygen create",
                rc=error.rc,
            ) from error
        except TpmRefusedError as error:
            if not says_damaged(error):
                raise
            raise PemError(
                f"{error}: the key is damaged", hint="copy its file again, or make a new key: tpm-mtls keygen create"
            ) from error

    def use_persistent(self, handle: int, *, authorization: Secret | None = None) -> LoadedKey:
        """The key at the persistent ``handle``, ready for use; takes no slot (one command).

        Raises:
            HandleNotFoundError: nothing is there.
        """
        public = self.read_public(handle).public
        resource = self._resources.refer(handle, public.name)
        self._resources.authorize(resource, authorization)
        return LoadedKey(public, b"", resource, self._resources)

    def persist(self, key: LoadedKey, handle: int) -> None:
        """Copies a loaded key to the persistent ``handle``; the loaded one stays loaded (one command).

        Raises:
            HandleOccupiedError: something is there already; it stays.
            TpmMemoryError: there is no room in the TPM's NV memory.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        try:
            with self._command(f"make the key persistent at {handle:#010x}", option="--owner-auth"):
                self._context.evict_control(ESYS_TR.OWNER, ESYS_TR(key.resource), handle)
        except TpmRefusedError as error:
            if error.rc != _NV_DEFINED:
                raise
            there = self.read_public(handle).public
            raise HandleOccupiedError(
                f"the handle {handle:#010x} is occupied by {there}",
                hint="choose another one, or let the first free one be chosen; what is there: tpm-mtls keygen list",
                handle=handle,
            ) from error

    def remove_persistent(self, handle: int) -> None:
        """Removes what sits at the persistent ``handle``; a key there is gone for good (one command).

        Raises:
            HandleNotFoundError: nothing is there.
            AuthorizationError: the owner hierarchy has another authorization value.
        """
        with (
            self._resources.reference(handle) as resource,
            self._command(f"remove {handle:#010x}", option="--owner-auth"),
        ):
            self._context.evict_control(ESYS_TR.OWNER, resource, handle)

    def flush(self, key: LoadedKey) -> None:
        """Removes a loaded key from the TPM's slots; one that is persistent or already flushed is no error."""
        self._resources.flush(key.resource)

    def _command(self, doing: str, *, option: str = "--auth") -> AbstractContextManager[None]:
        return self._resources.command(doing, option=option)

    def _loaded(
        self, resource: int, public: PublicArea, private: bytes = b"", authorization: Secret | None = None
    ) -> LoadedKey:
        return LoadedKey(public, private, self._resources.register(resource, authorization), self._resources)

    @contextmanager
    def _parent(self, handle: int, *, rsa: bool = False) -> Iterator[Any]:
        if handle == OWNER_HIERARCHY:
            with self.create_primary(hierarchy_parent_template(rsa=rsa)) as primary:
                yield ESYS_TR(primary.resource)
            return
        with self._resources.reference(handle) as resource:
            self._resources.authorize(resource, self._srk_authorization)
            yield resource
