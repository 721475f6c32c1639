"""The TPM's hierarchies and their authorizations: TPM 2.0 Library part 1 rev 1.59, 13; part 3, 24 and 25.

Authorization values, old and new, do not cross the bus in the clear: they go into HMACs, and a new one is encrypted, in
sessions that are salted to the storage root key where there is one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE
from tpm2_pytss.types import TPMT_SYM_DEF

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError
from tpm_mtls.tpm.ledger import Loaded
from tpm_mtls.tpm.sessions import INTO_TPM, UnsaltedSessions
from tpm_mtls.tpm_attributes import PERMANENT, STARTUP_CLEAR, Permanent, StartupClear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.tpm.capabilities import Capabilities
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.sessions import Sessions
    from tpm_mtls.tpm.storage_root import StorageRootKey

EMPTY: Final = Secret(b"")
"""The authorization value of a hierarchy that has none."""


class Hierarchy(enum.Enum):
    """A hierarchy; the value is its name for people and options."""

    OWNER = "owner"
    ENDORSEMENT = "endorsement"
    LOCKOUT = "lockout"
    PLATFORM = "platform"


_RESOURCES: Final = {
    Hierarchy.OWNER: ESYS_TR.OWNER,
    Hierarchy.ENDORSEMENT: ESYS_TR.ENDORSEMENT,
    Hierarchy.LOCKOUT: ESYS_TR.LOCKOUT,
    Hierarchy.PLATFORM: ESYS_TR.PLATFORM,
}

# part 2 rev 1.59, 6.13: TPM_PT_MAX_AUTH_FAIL and so on
_MAX_TRIES, _RECOVERY_TIME, _LOCKOUT_RECOVERY = 0x20F, 0x210, 0x211


@dataclass(frozen=True)
class LockoutParameters:
    """How the TPM defends itself against who tries authorization values: part 1, 19.8.

    Attributes:
        max_tries: wrong values until it is locked; 0 locks it always.
        recovery_time: seconds until one of them is forgotten; 0 never locks it.
        lockout_recovery: seconds that a wrong lockout authorization blocks that one; 0 until the next restart.
    """

    max_tries: int
    recovery_time: int
    lockout_recovery: int


@dataclass(frozen=True)
class HierarchyState:
    """What a TPM says about its hierarchies; it never tells the values.

    Attributes:
        has_authorization: those of the owner, endorsement and lockout hierarchies that have a value.
        lockout: the parameters against trying.
        locked_out: whether it is locked.
        clear_disabled: whether the lockout authorization may not clear it.
        platform_enabled: whether the platform hierarchy can be used until the next restart.
    """

    has_authorization: frozenset[Hierarchy]
    lockout: LockoutParameters
    locked_out: bool
    clear_disabled: bool
    platform_enabled: bool


def hierarchy_state(properties: Mapping[int, int]) -> HierarchyState:
    """The state that a TPM's variable ``properties`` say (`Capabilities.variable`); what is not said is 0. Pure."""
    permanent = properties.get(PERMANENT, 0)
    bits = {
        Hierarchy.OWNER: Permanent.OWNER_AUTH_SET,
        Hierarchy.ENDORSEMENT: Permanent.ENDORSEMENT_AUTH_SET,
        Hierarchy.LOCKOUT: Permanent.LOCKOUT_AUTH_SET,
    }
    return HierarchyState(
        has_authorization=frozenset(each for each, bit in bits.items() if permanent & bit),
        lockout=LockoutParameters(
            max_tries=properties.get(_MAX_TRIES, 0),
            recovery_time=properties.get(_RECOVERY_TIME, 0),
            lockout_recovery=properties.get(_LOCKOUT_RECOVERY, 0),
        ),
        locked_out=bool(permanent & Permanent.IN_LOCKOUT),
        clear_disabled=bool(permanent & Permanent.DISABLE_CLEAR),
        platform_enabled=bool(properties.get(STARTUP_CLEAR, 0) & StartupClear.PLATFORM_ENABLED),
    )


class Hierarchies:
    """The hierarchies of an open TPM; `Tpm.hierarchies` is the one to use."""

    def __init__(
        self, capabilities: Capabilities, srk: StorageRootKey, resources: Resources, sessions: Sessions
    ) -> None:
        self._capabilities = capabilities
        self._srk = srk
        self._resources = resources
        self._context = resources.context
        self._salted = sessions

    def state(self) -> HierarchyState:
        """What the TPM says about them (one command)."""
        return hierarchy_state(self._capabilities.variable())

    def authorize(self, hierarchy: Hierarchy, value: Secret) -> None:
        """From now on commands use ``value`` for ``hierarchy``; `EMPTY` where it has none."""
        self._resources.authorize(_RESOURCES[hierarchy], value)

    def accepts(self, hierarchy: Hierarchy, value: Secret) -> bool:
        """Whether ``value`` is the authorization value of ``hierarchy``; it is used from now on if so (four commands).

        Not for the lockout hierarchy: there a wrong one locks it (part 1, 19.8.2); the others do not count them.
        """
        self.authorize(hierarchy, value)
        try:
            self.prove(hierarchy)
        except AuthorizationError:
            self.authorize(hierarchy, EMPTY)
            return False
        return True

    def prove(self, hierarchy: Hierarchy) -> None:
        """Shows the TPM the authorization value in use, by a PolicySecret, which changes nothing (part 3, 23.4).

        Raises:
            AuthorizationError: it is another one.
            TpmLockoutError: it is the lockout hierarchy, for which a wrong one was tried before.
        """
        nothing = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        with self._resources.loading("start a policy session", Loaded("policy")):
            trial = self._context.start_auth_session(
                ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, nothing, TPM2_ALG.SHA256
            )
            self._resources.register(trial)
        with (
            self._resources.flushing(trial),
            self._sessions().hmac(0) as session,
            self._command(hierarchy, f"use the {hierarchy.value} hierarchy"),
        ):
            self._context.policy_secret(_RESOURCES[hierarchy], trial, b"", b"", b"", 0, session1=session)

    def change_authorization(self, hierarchy: Hierarchy, value: Secret) -> None:
        """Gives ``hierarchy`` the authorization value ``value``; the present one is in use (two commands).

        The storage root key, to which the session is salted, is made where there is none.

        Raises:
            AuthorizationError: the hierarchy has another authorization value than the one in use.
            TpmLockoutError: it is the lockout hierarchy, for which a wrong one was tried before.
        """
        with (
            self._salted.hmac(INTO_TPM) as session,
            self._command(hierarchy, f"change the {hierarchy.value} authorization"),
        ):
            self._context.hierarchy_change_auth(_RESOURCES[hierarchy], value.value.rstrip(b"\0"), session1=session)
        self.authorize(hierarchy, value)

    def set_lockout_parameters(self, parameters: LockoutParameters) -> None:
        """Sets ``parameters``; with the lockout authorization (two commands).

        Raises:
            AuthorizationError, TpmLockoutError: as `change_authorization`.
        """
        with (
            self._sessions().hmac(0) as session,
            self._command(Hierarchy.LOCKOUT, "set the parameters against trying authorization values"),
        ):
            self._context.dictionary_attack_parameters(
                parameters.max_tries,
                parameters.recovery_time,
                parameters.lockout_recovery,
                session1=session,
            )

    def disable_platform(self) -> None:
        """Disables the platform hierarchy until the next restart of the TPM; NV indices of the platform stay readable.

        Part 3, 24.2: phEnable is cleared, phEnableNV is not, so that the endorsement certificates can be read.

        Raises:
            AuthorizationError: the firmware gave it an authorization value.
        """
        with self._command(Hierarchy.PLATFORM, "disable the platform hierarchy"):
            self._context.hierarchy_control(ESYS_TR.PLATFORM, ESYS_TR.PLATFORM, False)

    def clear(self) -> None:
        """Clears the TPM: every key and NV index of the owner is gone for good; with the lockout authorization.

        The authorization values of the owner, the endorsement and the lockout hierarchy are empty then, and in use.

        Raises:
            AuthorizationError, TpmLockoutError: as `change_authorization`.
            TpmRefusedError: it is disabled.
        """
        with self._sessions().hmac(0) as session, self._command(Hierarchy.LOCKOUT, "clear the TPM"):
            self._context.clear(ESYS_TR.LOCKOUT, session1=session)
        for hierarchy in (Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT):
            self.authorize(hierarchy, EMPTY)
        self._srk.read_again()
        self._salted.expected = None

    def _command(self, hierarchy: Hierarchy, doing: str) -> Any:  # noqa: ANN401 - a context manager of `Resources`
        return self._resources.command(doing, option=f"--{hierarchy.value}-auth")

    def _sessions(self) -> Sessions:
        return UnsaltedSessions(self._resources) if self._srk.read() is None else self._salted
