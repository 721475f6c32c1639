"""ESAPI's objects of one connection: what is loaded, what is only referred to, and with which authorization values."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMT_SYM_DEF

from tpm_mtls.errors import HandleNotFoundError, TpmMtlsError
from tpm_mtls.tpm.boundary import command, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tpm2_pytss.ESAPI import ESAPI

    from tpm_mtls.authorization import Secret


class Resources:
    """The objects of one ESAPI ``context``; ``tcti`` is where its TPM is, for errors."""

    def __init__(self, context: ESAPI, tcti: str) -> None:
        self.context = context
        self.tcti = tcti
        self._loaded: list[int] = []

    def command(self, doing: str, *, option: str = "--auth") -> AbstractContextManager[None]:
        """`tpm_mtls.tpm.boundary.command` for this TPM."""
        return command(doing, self.tcti, option=option)

    def register(self, resource: int, authorization: Secret | None = None) -> int:
        """Remembers a loaded object, to be flushed. Belongs into the `command` block that loads it: none gets lost."""
        self._loaded.append(int(resource))
        self.authorize(resource, authorization)
        return int(resource)

    def authorize(self, resource: int, authorization: Secret | None) -> None:
        """Sets the authorization value that commands with this object will use."""
        if authorization is not None:
            self.context.tr_set_auth(ESYS_TR(resource), authorization.value)

    def refer(self, handle: int, name: bytes | None = None) -> int:
        """ESAPI's object for a persistent handle or NV index, without the ReadPublic that ESAPI itself would send.

        Made from the serialized object of the owner hierarchy by exchanging the handle, its first four bytes, and the
        Name, which follows (TPM2B_NAME). Without ``name`` the owner's stays, and nothing uses it: only policy and HMAC
        sessions need it.
        """
        blob = bytes(self.context.tr_serialize(ESYS_TR.OWNER))
        rest = blob[4:]
        if name is not None:
            rest = len(name).to_bytes(2, "big") + name + rest[2 + int.from_bytes(rest[:2], "big") :]
        return int(self.context.tr_deserialize(handle.to_bytes(4, "big") + rest))

    @contextmanager
    def reference(self, handle: int) -> Iterator[Any]:
        """As `refer`, for one block."""
        resource = ESYS_TR(self.refer(handle))
        try:
            yield resource
        finally:
            with suppress(TSS2_Exception):  # EvictControl has closed what it removed
                self.context.tr_close(resource)

    @contextmanager
    def endorsement_session(self, hash_algorithm: TPM2_ALG) -> Iterator[Any]:
        """A policy session that the authorization of the endorsement hierarchy satisfies, for one command that follows.

        PolicySecret(TPM_RH_ENDORSEMENT): TCG EK Credential Profile 2.5, B.6.2. It ends with that command; it is flushed
        where that did not come, or was refused (three commands then instead of two).
        """
        nothing = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        with self.command("start a policy session"):
            started = self.context.start_auth_session(
                ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, nothing, hash_algorithm
            )
            session = self.register(started)
        try:
            with self.command("use the endorsement hierarchy", option="--endorsement-auth"):
                self.context.policy_secret(ESYS_TR.ENDORSEMENT, started, b"", b"", b"", 0)
                self.context.trsess_set_attributes(started, TPMA_SESSION(0), TPMA_SESSION.CONTINUESESSION)
            yield started
            self._loaded.remove(session)  # the TPM has ended it
        finally:
            self.flush(session)

    def flush(self, resource: int) -> None:
        """Removes a loaded object from the TPM's slots; one that is persistent, or gone already, is no error."""
        if resource in self._loaded:
            with suppress(HandleNotFoundError), command("flush a key", self.tcti):
                self._loaded.remove(resource)
                self.context.flush_context(ESYS_TR(resource))

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
