"""Secrets in the TPM's NV memory: indices with an authorization value or a policy, read and written encrypted.

An index is named by its whole public area (`NvPublic`): its Name goes into each command's HMAC, so that an index that
somebody put in its place is refused, and no command is needed to ask for it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_AUTH, TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from tpm_mtls.errors import (
    AuthorizationError,
    HandleNotFoundError,
    HandleOccupiedError,
    PemError,
    PolicyError,
    TpmMemoryError,
    TpmRefusedError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.structures.nv_public import NvAttribute, NvPublic, parse_nv_public
from tpm_mtls.tpm.nv import PIECE, occupied
from tpm_mtls.tpm.policy_session import Proof
from tpm_mtls.tpm.secret_errors import secret_errors
from tpm_mtls.tpm.sessions import INTO_TPM, OUT_OF_TPM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.policy.observation import Registers
    from tpm_mtls.tpm.policy_session import PolicySessions
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.sessions import Sessions

_NV_DEFINED: Final = 0x14C  # TPM_RC_NV_DEFINED


_HINT: Final = "give the file that was written when the index was made"

_READ: Final = (NvAttribute.POLICYREAD, NvAttribute.AUTHREAD)
_WRITE: Final = (NvAttribute.POLICYWRITE, NvAttribute.AUTHWRITE)


@dataclass(frozen=True)
class _Access:
    proof: Proof
    by_owner: bool


class NvSecrets:
    """Secrets in the NV memory of an open TPM; `Tpm.nv_secrets` is the one to use.

    Authorization values, and what is written and read, cross the bus encrypted. Where a policy authorizes an index that
    may have an authorization value, too (AUTHREAD or AUTHWRITE), that costs another session, one command more; an index
    with POLICYREAD and OWNERWRITE is read by three.
    """

    def __init__(
        self, registers: Registers, resources: Resources, sessions: Sessions, policies: PolicySessions
    ) -> None:
        self._registers = registers
        self._resources = resources
        self._context = resources.context
        self._sessions = sessions
        self._policies = policies

    def inspect(self, index: int) -> NvPublic:
        """What ``index`` is, as whoever answers says (one command).

        Raises:
            HandleNotFoundError: it is not defined.
        """
        with self._resources.reference(index) as resource, self._resources.command(f"look at NV {index:#010x}"):
            public, _ = self._context.nv_read_public(resource)
        return parse_nv_public(bytes(public.nvPublic.marshal()))

    def define(self, public: NvPublic, authorization: Secret | None = None) -> NvPublic:
        """Makes the index ``public`` (two commands); returns it as it is then: not written.

        Raises:
            HandleOccupiedError: something is there already; it stays.
            TpmMemoryError: the NV memory is full.
            AuthorizationError: the owner hierarchy has another authorization value.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        made = replace(public, written=False)
        area = TPM2B_NV_PUBLIC(nvPublic=TPMS_NV_PUBLIC.unmarshal(made.data)[0])
        value = TPM2B_AUTH(authorization.value if authorization else b"")
        try:
            with (
                self._sessions.hmac(INTO_TPM) as session,
                self._resources.command(f"make NV {public.index:#010x}", option="--owner-auth"),
            ):
                self._context.tr_close(self._context.nv_define_space(value, area, session1=session))
        except TpmMemoryError as error:
            error.hint = "see what takes it: tpm2_getcap handles-nv-index; free some: tpm-mtls secret del"
            raise
        except TpmRefusedError as error:
            if error.rc != _NV_DEFINED:
                raise
            raise occupied(public.index) from error
        return made

    def undefine(self, public: NvPublic) -> None:
        """Removes the index ``public`` and what it holds; one that is not just so stays (two commands).

        Raises:
            HandleNotFoundError: it is not defined.
            HandleOccupiedError: it is another index; it stays.
            AuthorizationError: the owner hierarchy has another authorization value.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        with (
            self._comparing(public),
            self._index(public) as resource,
            self._sessions.hmac(0) as session,
            self._resources.command(f"remove NV {public.index:#010x}", option="--owner-auth"),
        ):
            self._context.nv_undefine_space(resource, session1=session)

    def write(
        self,
        public: NvPublic,
        data: bytes,
        *,
        authorization: Secret | None = None,
        policy: Sequence[Assertion] = (),
        signed_policies: Sequence[FoundPolicy] = (),
    ) -> NvPublic:
        """Writes ``data`` to the beginning of ``public``: two commands for each 768 bytes, one of which wears it.

        Cut off between two of them it leaves new data in front of old.

        Args:
            public: the index as it is now.
            data: what is written.
            authorization: the index's, where its attributes have AUTHWRITE.
            policy: the index's, where they have POLICYWRITE; with neither, the owner hierarchy authorizes.
            signed_policies: the newest first, where ``policy`` asks for one.

        Returns:
            The index as it is then: written.

        Raises:
            HandleNotFoundError: it is not defined.
            HandleOccupiedError: it is another index.
            AuthorizationError: it has another authorization value.
            PolicyRefusedError: its policy does not hold now; what differs is in the message.
            PolicyError: ``policy`` is not the index's, or lacks a signed policy.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        access = _access(public, _WRITE, policy, signed_policies)
        for start in range(0, len(data), PIECE):
            self._write_piece(public, data[start : start + PIECE], start, authorization, access)
            public = replace(public, written=True)
        return public

    def read(
        self,
        public: NvPublic,
        size: int | None = None,
        *,
        authorization: Secret | None = None,
        policy: Sequence[Assertion] = (),
        signed_policies: Sequence[FoundPolicy] = (),
    ) -> bytes:
        """The first ``size`` bytes of ``public``, or all: two commands for each 768, with a policy on PCRs three.

        Args and errors are those of `write`, with AUTHREAD and POLICYREAD.
        """
        access = _access(public, _READ, policy, signed_policies)
        wanted = public.size if size is None else min(size, public.size)
        return b"".join(
            self._read_piece(public, min(PIECE, wanted - start), start, authorization, access)
            for start in range(0, wanted, PIECE)
        )

    def _write_piece(
        self, public: NvPublic, data: bytes, offset: int, authorization: Secret | None, access: _Access
    ) -> None:
        with self._index(public, authorization) as resource:
            handle = ESYS_TR.OWNER if access.by_owner else resource
            self._use(
                f"write NV {public.index:#010x}",
                public,
                access,
                INTO_TPM,
                lambda sessions: self._context.nv_write(resource, data, offset, auth_handle=handle, **sessions),
            )

    def _read_piece(
        self, public: NvPublic, size: int, offset: int, authorization: Secret | None, access: _Access
    ) -> bytes:
        with self._index(public, authorization) as resource:
            handle = ESYS_TR.OWNER if access.by_owner else resource
            return bytes(
                self._use(
                    f"read NV {public.index:#010x}",
                    public,
                    access,
                    OUT_OF_TPM,
                    lambda sessions: self._context.nv_read(resource, size, offset, auth_handle=handle, **sessions),
                )
            )

    def _use(
        self, doing: str, public: NvPublic, access: _Access, direction: int, call: Callable[[Mapping[str, Any]], Any]
    ) -> Any:  # noqa: ANN401 - what a library without types gives
        def send(sessions: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as above
            with self._resources.command(doing, option="--owner-auth" if access.by_owner else "--auth"):
                return call(sessions)

        with secret_errors(self._registers, doing, access.proof), self._comparing(public):
            return self._policies.use(access.proof, direction, send)

    @contextmanager
    def _comparing(self, public: NvPublic) -> Iterator[None]:
        """Tells a wrong authorization value from another index in its place (one command where one is refused)."""
        try:
            yield
        except HandleNotFoundError as error:
            error.hint = "was the TPM cleared, or the index removed? see what is there: tpm2_getcap handles-nv-index"
            raise
        except AuthorizationError as error:
            if self._differs(public):
                raise HandleOccupiedError(
                    f"the NV index {public.index:#010x} is not the one that was made, but another",
                    hint="see what is there: tpm2_nvreadpublic",
                    handle=public.index,
                ) from error
            raise

    def _differs(self, public: NvPublic) -> bool:
        try:
            return self.inspect(public.index) != public
        except PemError:
            return True

    @contextmanager
    def _index(self, public: NvPublic, authorization: Secret | None = None) -> Iterator[Any]:
        with self._resources.referring(self._resources.refer_nv(public)) as resource:
            self._resources.authorize(resource, authorization)
            yield resource


def _access(
    public: NvPublic,
    attributes: tuple[NvAttribute, NvAttribute],
    policy: Sequence[Assertion],
    signed_policies: Sequence[FoundPolicy],
) -> _Access:
    """How ``public`` is used: by its policy where that does and is given, else by its own value, else by the owner.

    Raises:
        PolicyError: it takes a policy, and none or another one is given.
    """
    by_policy, by_value = (each in public.attributes for each in attributes)
    if by_policy and policy:
        if policy_digest(policy) != public.policy:
            raise PolicyError(f"the policy is not that of NV {public.index:#010x}", hint=_HINT)
        may_have_value = bool(public.attributes & (NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE))
        return _Access(Proof(policy, signed_policies, may_have_value=may_have_value), by_owner=False)
    if by_policy and not by_value:
        raise PolicyError(f"the policy of NV {public.index:#010x} is missing", hint=_HINT)
    return _Access(Proof(), by_owner=not by_value)
