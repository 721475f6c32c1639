"""The boundary to tpm2-pytss: typed commands, errors of the project, nothing left loaded."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

# libtss2 writes its own log lines to stderr; what they say is in our errors, in words.
os.environ.setdefault("TSS2_LOG", "all+NONE")

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP
from tpm2_pytss.ESAPI import ESAPI
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_TEMPLATE,
    TPMS_SCHEME_HASH,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMU_SIG_SCHEME,
)

from tpm_mtls.errors import HandleOccupiedError, TpmMtlsError, TpmRefusedError
from tpm_mtls.key_reference import PERSISTENT_FIRST
from tpm_mtls.response_codes import tpm_error
from tpm_mtls.structures import PublicArea, parse_public_area
from tpm_mtls.tcti import resolve_tcti
from tpm_mtls.tpm.storage_root import StorageRootKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from tpm_mtls.authorization import Secret

_NO_COMMAND = 0x143  # TPM_RC_COMMAND_CODE: part 2, 6.6.3
_NV_DEFINED = 0x14C  # TPM_RC_NV_DEFINED
_HASHES = {"sha256": TPM2_ALG.SHA256, "sha384": TPM2_ALG.SHA384, "sha512": TPM2_ALG.SHA512}
_HANDLES_AT_ONCE = 64
_MANUFACTURER = 0x105  # TPM_PT_MANUFACTURER: part 2, 6.13
_FIRMWARE_VERSIONS = (0x10B, 0x10C)  # TPM_PT_FIRMWARE_VERSION_1 and 2


@dataclass(frozen=True)
class TpmFacts:
    """What a TPM says about itself.

    Attributes:
        vendor: TPM_PT_MANUFACTURER, up to four characters, such as ``IFX``.
        firmware: TPM_PT_FIRMWARE_VERSION_1 and 2 as four decimal numbers, such as ``7.85.4555.0``.
        reset_count: TPMS_CLOCK_INFO.resetCount: how often it was reset since it was last cleared.
    """

    vendor: str
    firmware: str
    reset_count: int


@dataclass(frozen=True)
class PersistentObject:
    """An object at a persistent handle.

    Attributes:
        handle: where.
        public: its public area.
        qualified_name: digest over the Names of all its ancestors and its own (part 1, 16).
    """

    handle: int
    public: PublicArea
    qualified_name: bytes


@dataclass(frozen=True)
class LoadedKey:
    """A key that the TPM can use now; flushed at the end of its own ``with`` block, or with the TPM's.

    Attributes:
        public: its public area.
        private: its private part, encrypted by its parent (content of TPM2B_PRIVATE); empty where the TPM keeps it.
    """

    public: PublicArea
    private: bytes
    _tpm: Tpm = field(repr=False)
    _object: int = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tpm.flush(self)


@contextmanager
def open_tpm(
    tcti: str | None = None,
    *,
    owner_authorization: Secret | None = None,
    srk_authorization: Secret | None = None,
) -> Iterator[Tpm]:
    """An open TPM; whatever was loaded into it is flushed at the end of the block, an interrupt included.

    Args:
        tcti: where it is; see `tpm_mtls.tcti.resolve_tcti`.
        owner_authorization: authorization value of the owner hierarchy, if it has one.
        srk_authorization: authorization value of the storage root key, if it has one.

    Raises:
        TctiInvalidError: ``tcti`` is none.
        TpmUnavailableError: no TPM answers there.
    """
    where = resolve_tcti(tcti)
    with _translated("open the TPM", where):
        context = ESAPI(where)
    try:
        tpm = Tpm(context, where, owner_authorization, srk_authorization)
        try:
            yield tpm
        except BaseException:
            with suppress(TpmMtlsError):  # the first error is the one to tell
                tpm.flush_all()
            raise
        tpm.flush_all()
    finally:
        context.close()


class Tpm:
    """An open TPM; `open_tpm` makes one.

    Every command may raise what `tpm_mtls.response_codes.tpm_error` makes of the TPM's answer; the docstrings name only
    what is particular to a command.

    Attributes:
        tcti: where it is.
        srk: its storage root key.
    """

    def __init__(
        self, context: ESAPI, tcti: str, owner_authorization: Secret | None, srk_authorization: Secret | None
    ) -> None:
        self.tcti = tcti
        self.srk = StorageRootKey(self)
        self._context = context
        self._loaded: list[int] = []
        self._srk_authorization = srk_authorization
        if owner_authorization is not None:
            context.tr_set_auth(ESYS_TR.OWNER, owner_authorization.value)

    # -- what is there ------------------------------------------------------------------------------------------------

    def facts(self) -> TpmFacts:
        """Vendor, firmware and resetCount (two commands)."""
        with self._command("read the TPM's properties"):
            _, data = self._context.get_capability(TPM2_CAP.TPM_PROPERTIES, _MANUFACTURER, 16)
            clock = self._context.read_clock()
        listed = data.data.tpmProperties
        values = {int(listed[i].property): int(listed[i].value) for i in range(int(listed.count))}
        vendor = values.get(_MANUFACTURER, 0).to_bytes(4, "big")
        versions = [values.get(part, 0) for part in _FIRMWARE_VERSIONS]
        return TpmFacts(
            vendor=vendor.rstrip(b"\0 ").decode("ascii", errors="replace"),
            firmware=".".join(f"{version >> 16}.{version & 0xFFFF}" for version in versions),
            reset_count=int(clock.clockInfo.resetCount),
        )

    def persistent_handles(self) -> tuple[int, ...]:
        """All persistent handles in use, of every hierarchy (one command for the first 64)."""
        found: list[int] = []
        more = True
        while more:
            first = found[-1] + 1 if found else PERSISTENT_FIRST
            with self._command("list the persistent handles"):
                more, data = self._context.get_capability(TPM2_CAP.HANDLES, first, _HANDLES_AT_ONCE)
            listed = data.data.handles
            found += [int(listed[i]) for i in range(int(listed.count))]
        return tuple(found)

    def read_public(self, handle: int) -> PersistentObject:
        """What sits at the persistent ``handle``.

        Raises:
            HandleNotFoundError: nothing does.
        """
        with self._resource(handle) as resource, self._command(f"read what is at {handle:#010x}"):
            public, _, qualified_name = self._context.read_public(resource)
        return PersistentObject(handle, _public_area(public), bytes(qualified_name))

    # -- keys ---------------------------------------------------------------------------------------------------------

    def create_primary(self, template: bytes) -> LoadedKey:
        """The owner hierarchy's primary key for ``template`` (a marshalled TPMT_PUBLIC), loaded."""
        with self._loading("create a primary key"):
            resource, public, *_ = self._context.create_primary(
                None, TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(template)[0])
            )
            return self._register(resource, _public_area(public), b"")

    def create_child(self, parent: int, template: bytes, authorization: Secret | None) -> LoadedKey:
        """A new key under the persistent ``parent``, loaded; one command, or two where CreateLoaded is missing."""
        sensitive = TPM2B_SENSITIVE_CREATE(
            sensitive=TPMS_SENSITIVE_CREATE(userAuth=authorization.value if authorization else b"")
        )
        with self._parent(parent) as resource:
            try:
                with self._loading("create a key"):
                    handle, private, public = self._context.create_loaded(resource, sensitive, TPM2B_TEMPLATE(template))
                    return self._register(handle, _public_area(public), bytes(private), authorization)
            except TpmRefusedError as error:
                if error.rc != _NO_COMMAND:
                    raise
            with self._command("create a key"):
                private, public, *_ = self._context.create(
                    resource, sensitive, TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(template)[0])
                )
        return self.load(parent, _public_area(public), bytes(private), authorization)

    def load(self, parent: int, public: PublicArea, private: bytes, authorization: Secret | None) -> LoadedKey:
        """A key whose parent sits at the persistent handle ``parent``, loaded again.

        Raises:
            ForeignKeyError: it was made by another TPM, or this one was cleared since.
        """
        with self._parent(parent) as resource, self._loading("load the key"):
            handle = self._context.load(
                resource, TPM2B_PRIVATE(private), TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(public.data)[0])
            )
            return self._register(handle, public, private, authorization)

    def use_persistent(self, handle: int, *, authorization: Secret | None = None) -> LoadedKey:
        """The key at the persistent ``handle``, ready for use; nothing is loaded, and nothing flushed (one command).

        Raises:
            HandleNotFoundError: nothing is there.
        """
        public = self.read_public(handle).public
        resource = self._reference(handle)
        self._authorize(resource, authorization)
        return LoadedKey(public, b"", self, int(resource))

    def sign(self, key: LoadedKey, digest: bytes, *, hash_name: str) -> bytes:
        """A signature over ``digest``, made by ``hash_name`` (``sha256``, ``sha384``, ``sha512``).

        Returns:
            ECDSA-Sig-Value in DER (RFC 3279, 2.2.3) for an ECC key, the RSASSA-PKCS1-v1_5 signature for an RSA key.

        Raises:
            AuthorizationError: the key has another authorization value.
            TpmLockoutError: too many wrong ones were tried.
        """
        details = TPMU_SIG_SCHEME(any=TPMS_SCHEME_HASH(hashAlg=_HASHES[hash_name]))
        scheme = TPM2_ALG.ECDSA if key.public.algorithm.startswith("ecc-") else TPM2_ALG.RSASSA
        with self._command("sign"):
            signature = self._context.sign(
                ESYS_TR(key._object),  # noqa: SLF001 - opaque outside this module
                digest,
                TPMT_SIG_SCHEME(scheme=scheme, details=details),
                None,
            )
        return bytes(signature)

    # -- persistence and flushing -------------------------------------------------------------------------------------

    def persist(self, key: LoadedKey, handle: int) -> None:
        """Copies a loaded key to the persistent ``handle``; the loaded one stays loaded.

        Raises:
            HandleOccupiedError: something is there already; it stays.
            TpmMemoryError: there is no room in the TPM's NV memory.
        """
        try:
            with self._command(f"make the key persistent at {handle:#010x}"):
                self._context.evict_control(ESYS_TR.OWNER, ESYS_TR(key._object), handle)  # noqa: SLF001 - opaque outside this module
        except TpmRefusedError as error:
            if error.rc != _NV_DEFINED:
                raise
            there = self.read_public(handle).public
            raise HandleOccupiedError(
                f"the handle {handle:#010x} is occupied: {there.algorithm}, {', '.join(there.attribute_words)}, "
                f"Name {there.name.hex()}",
                hint="choose another one, or let the first free one be chosen; what is there: tpm-mtls keygen list",
                handle=handle,
            ) from error

    def remove_persistent(self, handle: int) -> None:
        """Removes what sits at the persistent ``handle``; a key there is gone for good.

        Raises:
            HandleNotFoundError: nothing is there.
        """
        with self._resource(handle) as resource, self._command(f"remove {handle:#010x}"):
            self._context.evict_control(ESYS_TR.OWNER, resource, handle)

    def flush(self, key: LoadedKey) -> None:
        """Removes a loaded key from the TPM's slots; one that is persistent or already flushed is no error."""
        if key._object in self._loaded:  # noqa: SLF001 - opaque outside this module
            with _uninterrupted(), self._command("flush a key"):
                self._loaded.remove(key._object)  # noqa: SLF001 - opaque outside this module
                self._context.flush_context(ESYS_TR(key._object))  # noqa: SLF001 - opaque outside this module

    def flush_all(self) -> None:
        """Removes everything that was loaded; all of it is tried even if one fails."""
        with _uninterrupted():
            first: TpmMtlsError | None = None
            while self._loaded:
                try:
                    with self._command("flush a key"):
                        self._context.flush_context(ESYS_TR(self._loaded.pop()))
                except TpmMtlsError as error:
                    first = first or error
            if first is not None:
                raise first

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _command(self, doing: str) -> Iterator[None]:
        with _translated(doing, self.tcti):
            yield

    @contextmanager
    def _loading(self, doing: str) -> Iterator[None]:
        """A command whose object must not get lost between the TPM's answer and its registration."""
        with _uninterrupted(), self._command(doing):
            yield

    def _register(
        self, resource: int, public: PublicArea, private: bytes, authorization: Secret | None = None
    ) -> LoadedKey:
        self._loaded.append(int(resource))
        self._authorize(resource, authorization)
        return LoadedKey(public, private, self, int(resource))

    def _authorize(self, resource: int, authorization: Secret | None) -> None:
        if authorization is not None:
            self._context.tr_set_auth(ESYS_TR(resource), authorization.value)

    def _reference(self, handle: int) -> int:
        """ESAPI's object for a persistent handle, without the ReadPublic that Esys_TR_FromTPMPublic would send.

        Made from the serialized object of the owner hierarchy by exchanging the handle, its first four bytes. The Name
        in it stays wrong, and unused: only HMAC sessions need it.
        """
        blob = bytes(self._context.tr_serialize(ESYS_TR.OWNER))
        return int(self._context.tr_deserialize(handle.to_bytes(4, "big") + blob[4:]))

    @contextmanager
    def _resource(self, handle: int) -> Iterator[Any]:
        resource = ESYS_TR(self._reference(handle))
        try:
            yield resource
        finally:
            with suppress(TSS2_Exception):  # EvictControl has closed what it removed
                self._context.tr_close(resource)

    @contextmanager
    def _parent(self, handle: int) -> Iterator[Any]:
        with self._resource(handle) as resource:
            self._authorize(resource, self._srk_authorization)
            yield resource


@contextmanager
def _translated(doing: str, tcti: str) -> Iterator[None]:
    """The one place where exceptions of tpm2-pytss become errors of the project."""
    try:
        yield
    except TSS2_Exception as error:
        raise tpm_error(int(error.rc), doing=doing, tcti=tcti) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets an interrupt wait until the block is done; only signals that Python itself would handle."""
    waiting = [
        number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))
    ]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _public_area(public: TPM2B_PUBLIC) -> PublicArea:
    return parse_public_area(bytes(public.publicArea.marshal()))
