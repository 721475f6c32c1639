"""ESAPI's objects of one connection: what is loaded, what is only referred to, and with which authorization values."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMT_SYM_DEF

from tpm_mtls.errors import HandleNotFoundError, TpmMtlsError, TpmRefusedError
from tpm_mtls.tpm.boundary import command, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tpm2_pytss.ESAPI import ESAPI

    from tpm_mtls.authorization import Secret
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.structures.nv_public import NvPublic
    from tpm_mtls.tpm.ledger import Ledger, Loaded

_KEY: Final = 1  # IESYSC_KEY_RSRC, IESYSC_NV_RSRC: libtss2, src/tss2-esys/esys_types.h
_NV: Final = 2

_TPM_LAYER: Final = 0x10000  # codes below are the TPM's own: it did not do what was asked


class Resources:
    """The objects of one ESAPI ``context``; ``tcti`` is where its TPM is, for errors."""

    def __init__(self, context: ESAPI, tcti: str, ledger: Ledger | None = None) -> None:
        """``ledger`` is told what is loaded by `loading`."""
        self.context = context
        self.tcti = tcti
        self._ledger = ledger
        self._loaded: list[int] = []

    def command(self, doing: str, *, option: str = "--auth") -> AbstractContextManager[None]:
        """`tpm_mtls.tpm.boundary.command` for this TPM."""
        return command(doing, self.tcti, option=option)

    @contextmanager
    def loading(self, doing: str, what: Loaded, *, option: str = "--auth") -> Iterator[None]:
        """As `command`, for one that loads ``what``; `register` it in the block."""
        if self._ledger is not None:
            self._ledger.expect(what)
        try:
            with self.command(doing, option=option):
                yield
        except TpmRefusedError as error:
            if self._ledger is not None and error.rc < _TPM_LAYER:
                self._ledger.refused()
            raise

    def register(self, resource: int, authorization: Secret | None = None) -> int:
        """Remembers a loaded object, to be flushed. Belongs into the `command` block that loads it: none gets lost."""
        self._loaded.append(int(resource))
        if self._ledger is not None:
            self._ledger.loaded(self._handle(resource))
        self.authorize(resource, authorization)
        return int(resource)

    def authorize(self, resource: int, authorization: Secret | None) -> None:
        """Sets the authorization value that commands with this object will use.

        Without zeros at its end, as a TPM keeps it (part 1, 17.6.4.3): ESAPI's HMACs would take them in.
        """
        if authorization is not None:
            self.context.tr_set_auth(ESYS_TR(resource), authorization.value.rstrip(b"\0"))

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

    def refer_key(self, handle: int, public: PublicArea) -> int:
        """As `refer`, for a persistent key to which ESAPI shall encrypt a salt: it needs the public area for that."""
        return self._deserialize(handle, public.name, _KEY, public.data)

    def refer_nv(self, public: NvPublic) -> int:
        """As `refer`, for an NV index that sessions work on: ESAPI needs its Name, and its public area to keep it."""
        return self._deserialize(public.index, public.name, _NV, public.data)

    def _deserialize(self, handle: int, name: bytes, kind: int, public: bytes) -> int:
        """IESYS_RESOURCE as Esys_TR_Serialize writes it (libtss2 3.2 to 4.1, src/tss2-esys/esys_mu.c)."""
        parts = (handle.to_bytes(4, "big"), _sized(name), kind.to_bytes(4, "big"), _sized(public))
        return int(self.context.tr_deserialize(b"".join(parts)))

    @contextmanager
    def referring(self, resource: int) -> Iterator[Any]:
        """ESAPI's object ``resource``, closed after the block; the TPM does not notice."""
        try:
            yield ESYS_TR(resource)
        finally:
            with suppress(TSS2_Exception):  # a command that removes it has closed it, too
                self.context.tr_close(ESYS_TR(resource))

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
            self.ended(session)
        finally:
            self.flush(session)

    def ended(self, session: int) -> None:
        """The TPM has ended ``session`` with a command, so that nothing is left to be flushed."""
        self._loaded.remove(int(session))
        self._gone(self._handle(session))
        self.context.tr_close(ESYS_TR(session))

    @contextmanager
    def flushing(self, resource: int) -> Iterator[None]:
        """Flushes ``resource`` after the block; if the block fails, its error is the one to tell."""
        try:
            yield
        except BaseException:
            with suppress(TpmMtlsError):
                self.flush(int(resource))
            raise
        self.flush(int(resource))

    def flush(self, resource: int) -> None:
        """Removes a loaded object from the TPM's slots; one that is persistent, or gone already, is no error."""
        if resource in self._loaded:
            handle = self._handle(resource)
            with suppress(HandleNotFoundError), command("flush a key", self.tcti):
                self._loaded.remove(resource)
                self.context.flush_context(ESYS_TR(resource))
            self._gone(handle)

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

    def _handle(self, resource: int) -> int:
        """The TPM's handle of ESAPI's object; only for the ledger."""
        return int(self.context.tr_get_tpm_handle(ESYS_TR(resource))) if self._ledger is not None else 0

    def _gone(self, handle: int) -> None:
        if self._ledger is not None:
            self._ledger.gone(handle)


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
