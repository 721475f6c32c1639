"""ESAPI's objects of one connection: what is loaded, what is only referred to, and with which authorization values."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.TSS2_Exception import TSS2_Exception

from tpm_mtls.errors import HandleNotFoundError, TpmMtlsError
from tpm_mtls.tpm.boundary import command, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm2_pytss.ESAPI import ESAPI

    from tpm_mtls.authorization import Secret


class Resources:
    """The objects of one ESAPI ``context``; ``tcti`` is where its TPM is, for errors."""

    def __init__(self, context: ESAPI, tcti: str) -> None:
        self._context = context
        self._tcti = tcti
        self._loaded: list[int] = []

    def register(self, resource: int, authorization: Secret | None = None) -> int:
        """Remembers a loaded object, to be flushed. Belongs into the `command` block that loads it: none gets lost."""
        self._loaded.append(int(resource))
        self.authorize(resource, authorization)
        return int(resource)

    def authorize(self, resource: int, authorization: Secret | None) -> None:
        """Sets the authorization value that commands with this object will use."""
        if authorization is not None:
            self._context.tr_set_auth(ESYS_TR(resource), authorization.value)

    def refer(self, handle: int) -> int:
        """ESAPI's object for a persistent handle, without the ReadPublic that Esys_TR_FromTPMPublic would send.

        Made from the serialized object of the owner hierarchy by exchanging the handle, its first four bytes. The Name
        in it stays wrong, and unused: only HMAC sessions need it.
        """
        blob = bytes(self._context.tr_serialize(ESYS_TR.OWNER))
        return int(self._context.tr_deserialize(handle.to_bytes(4, "big") + blob[4:]))

    @contextmanager
    def reference(self, handle: int) -> Iterator[Any]:
        """As `refer`, for one block."""
        resource = ESYS_TR(self.refer(handle))
        try:
            yield resource
        finally:
            with suppress(TSS2_Exception):  # EvictControl has closed what it removed
                self._context.tr_close(resource)

    def flush(self, resource: int) -> None:
        """Removes a loaded object from the TPM's slots; one that is persistent, or gone already, is no error."""
        if resource in self._loaded:
            with suppress(HandleNotFoundError), command("flush a key", self._tcti):
                self._loaded.remove(resource)
                self._context.flush_context(ESYS_TR(resource))

    def flush_all(self) -> None:
        """Removes everything that was loaded; all of it is tried even if one fails."""
        errors: list[TpmMtlsError] = []
        with uninterrupted():
            while self._loaded:
                try:
                    self.flush(self._loaded[-1])
                except TpmMtlsError as error:
                    errors.append(error)
        if errors:
            raise errors[0]
