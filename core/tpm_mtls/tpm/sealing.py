"""Sealing: data that this TPM alone gives back, under the storage root key.

Data and authorization values cross the bus encrypted (`tpm_mtls.tpm.sessions`), in both directions.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_PRIVATE, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

from tpm_mtls.errors import PemError, PolicyError, TpmRefusedError, UsageError
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.structures import Attribute
from tpm_mtls.structures.sealed import SEALED_LIMIT, SealedObject, sealed_object
from tpm_mtls.tpm.boundary import public_area, says_damaged, sized_public
from tpm_mtls.tpm.ledger import Loaded
from tpm_mtls.tpm.policy_session import Proof
from tpm_mtls.tpm.secret_errors import check_authorization, secret_errors
from tpm_mtls.tpm.sessions import INTO_TPM, OUT_OF_TPM
from tpm_mtls.tpm.storage_root import SRK_HANDLE
from tpm_mtls.tpm.templates import sealed_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.policy.observation import Registers
    from tpm_mtls.tpm.policy_session import PolicySessions
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.sessions import Sessions
    from tpm_mtls.tpm.values import LoadedKey


class Sealing:
    """Sealing with an open TPM; `Tpm.sealing` is the one to use."""

    def __init__(
        self,
        registers: Registers,
        resources: Resources,
        sessions: Sessions,
        policies: PolicySessions,
        srk_authorization: Secret | None,
    ) -> None:
        self._registers = registers
        self._resources = resources
        self._context = resources.context
        self._sessions = sessions
        self._policies = policies
        self._srk_authorization = srk_authorization

    def seal(
        self, data: bytes, *, policy: Sequence[Assertion] = (), authorization: Secret | None = None
    ) -> SealedObject:
        """``data``, sealed (two commands).

        Args:
            data: 1 to 128 bytes.
            policy: what must hold to unseal it; empty for nothing.
            authorization: what who unseals it must know; with a policy, that says so (`PolicyAuthValue`).

        Raises:
            UsageError: ``data`` is empty or too long, or ``policy`` and ``authorization`` contradict each other.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
            AuthorizationError: the storage root key has another authorization value.
        """
        if not 0 < len(data) <= SEALED_LIMIT:
            raise UsageError(
                f"{len(data)} bytes cannot be sealed", hint=f"a TPM seals 1 to {SEALED_LIMIT} bytes; seal a key instead"
            )
        check_authorization(policy, authorization)
        digest = policy_digest(policy) if policy else b""
        template = sealed_template(with_authorization=authorization is not None, policy=digest)
        value = authorization.value if authorization else b""
        sensitive = TPM2B_SENSITIVE_CREATE(sensitive=TPMS_SENSITIVE_CREATE(userAuth=value, data=data))
        with (
            self._parent() as parent,
            self._sessions.hmac(INTO_TPM) as session,
            self._resources.command("seal the data", option="--srk-auth"),
        ):
            private, public, *_ = self._context.create(parent, sensitive, sized_public(template), session1=session)
        return SealedObject(public_area(public), bytes(private))

    def unseal(
        self,
        sealed: SealedObject,
        *,
        policy: Sequence[Assertion] = (),
        signed_policies: Sequence[FoundPolicy] = (),
        authorization: Secret | None = None,
        parent: LoadedKey | None = None,
    ) -> bytes:
        """The data in ``sealed`` (four commands, with a policy on PCRs five; one more if the SRK has a password).

        Args:
            sealed: what `seal` or another program made.
            policy: the one it was sealed with; may be empty where it has none.
            signed_policies: the newest first, where ``policy`` asks for one.
            authorization: its authorization value, if it has one.
            parent: under which key another program sealed it; none for the storage root key.

        Raises:
            PolicyError: ``policy`` is not the object's, or lacks a signed policy.
            PolicyRefusedError: its policy does not hold now; what differs is in the message.
            AuthorizationError: it has another authorization value.
            TpmLockoutError: too many wrong ones were tried.
            PemError: it is no sealed data, or damaged.
            ForeignKeyError: another TPM sealed it, or this one was cleared since; or it is damaged.
            StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        """
        _check_policy(sealed, policy)
        doing = "unseal the data"
        proof = Proof(policy, signed_policies, may_have_value=_may_have_value(sealed))
        with secret_errors(self._registers, doing, proof), self._loaded(sealed, parent) as item:
            self._resources.authorize(item, authorization)

            def send(sessions: Mapping[str, Any]) -> bytes:
                with self._resources.command(doing):
                    return bytes(self._context.unseal(item, **sessions))

            return self._policies.use(proof, OUT_OF_TPM, send)

    @contextmanager
    def _loaded(self, sealed: SealedObject, under: LoadedKey | None) -> Iterator[Any]:
        item = self._load(sealed, under)
        with self._resources.flushing(item):
            yield item

    def _load(self, sealed: SealedObject, under: LoadedKey | None) -> Any:  # noqa: ANN401 - an ESYS_TR, of a library without types
        loaded = Loaded("object", public=sealed.public.data.hex())
        try:
            with (
                self._authorized_parent(under) as (parent, session),
                self._resources.loading("load the sealed data", loaded, option="--srk-auth"),
            ):
                private, public = TPM2B_PRIVATE(sealed.private), sized_public(sealed.public.data)
                item = self._context.load(parent, private, public, session1=session)
                self._resources.register(item)
                return item
        except TpmRefusedError as error:
            if not says_damaged(error):
                raise
            raise PemError(f"{error}: the sealed data is damaged", hint="copy its file again") from error

    @contextmanager
    def _authorized_parent(self, other: LoadedKey | None) -> Iterator[tuple[Any, Any]]:
        if other is not None:
            yield ESYS_TR(other.resource), ESYS_TR.PASSWORD
            return
        with self._parent() as parent, self._parent_session() as session:
            yield parent, session

    @contextmanager
    def _parent_session(self) -> Iterator[Any]:
        """What authorizes a command of the parent's that carries no secret: its password, unless it has one."""
        if self._srk_authorization is None:
            with self._sessions.suspecting(self._sessions.srk()):
                yield ESYS_TR.PASSWORD
            return
        with self._sessions.hmac(0) as session:
            yield session

    @contextmanager
    def _parent(self) -> Iterator[Any]:
        public = self._sessions.srk()
        with self._resources.referring(self._resources.refer_key(SRK_HANDLE, public)) as parent:
            self._resources.authorize(parent, self._srk_authorization)
            yield parent


def _check_policy(sealed: SealedObject, policy: Sequence[Assertion]) -> None:
    sealed_object(sealed.public, sealed.private)
    if policy and policy_digest(policy) != sealed.public.policy:
        raise PolicyError(
            "the policy is not the one that the data was sealed with", hint="give the file that was written beside it"
        )
    if not policy and Attribute.USERWITHAUTH not in sealed.public.attributes:
        raise PolicyError(
            "the data is sealed with a policy, which is missing", hint="give the file that was written beside it"
        )


def _may_have_value(sealed: SealedObject) -> bool:
    """Whether somebody else may have given it an authorization value besides a policy; as `seal` makes it, it has none.

    Where only a policy unseals it, and dictionary-attack protection does not guard the value, nothing needs one.
    """
    return Attribute.USERWITHAUTH in sealed.public.attributes or Attribute.NODA not in sealed.public.attributes
