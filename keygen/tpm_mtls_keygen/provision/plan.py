"""What of a TPM differs from what is wanted, and in which order it is changed. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from tpm_mtls.errors import AuthorizationError, StateError
from tpm_mtls.tpm.hierarchies import EMPTY, Hierarchy
from tpm_mtls_keygen.provision.settings import CERTIFIED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tpm_mtls.authorization import Secret
    from tpm_mtls.structures import EkTemplate
    from tpm_mtls.tpm.hierarchies import HierarchyState, LockoutParameters
    from tpm_mtls_keygen.provision.settings import Settings

MANAGED: Final = (Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT)
"""The hierarchies whose authorizations are seen to, in this order."""

_BAD_AUTH: Final = 0x9A2  # TPM_RC_BAD_AUTH for the first session: what the TPM would answer


class Standing(enum.Enum):
    """How the authorization of a hierarchy stands."""

    NONE = "none"
    KEPT = "set, and kept"
    BEGUN = "set; the value that was begun has to be kept"
    GIVEN = "set, to the given value"
    UNKNOWN = "set, by somebody else"


class Platform(enum.Enum):
    """How the platform hierarchy stands."""

    DISABLED = "disabled"
    OPEN = "enabled, without an authorization"
    LOCKED = "enabled, with an authorization of the firmware"


@dataclass(frozen=True)
class Authorization:
    """The authorization of a hierarchy.

    Attributes:
        standing: how it stands.
        current: the value that it has, as far as it is known.
        wanted: the value that it shall get; none for a new one.
    """

    standing: Standing
    current: Secret = EMPTY
    wanted: Secret | None = None


@dataclass(frozen=True)
class Observed:
    """How a TPM is.

    Attributes:
        state: what it says about its hierarchies.
        srk: Name of its storage root key; none where there is none.
        endorsement_keys: those at persistent handles.
        certified: those with a certificate.
        authorizations: of the owner, endorsement and lockout hierarchies.
        platform: how that one stands.
    """

    state: HierarchyState
    srk: bytes | None
    endorsement_keys: frozenset[EkTemplate]
    certified: tuple[EkTemplate, ...]
    authorizations: Mapping[Hierarchy, Authorization]
    platform: Platform

    def cleared(self) -> Observed:
        """How it is once it is cleared, but for the parameters against trying, which are the maker's then."""
        return replace(
            self,
            srk=None,
            endorsement_keys=frozenset(),
            authorizations={each: Authorization(Standing.NONE) for each in self.authorizations},
        )


@dataclass(frozen=True)
class Clear:
    """Clear the TPM, whose storage root key has the Name ``srk``."""

    srk: bytes


@dataclass(frozen=True)
class MakeStorageRoot:
    """Make the storage root key."""


@dataclass(frozen=True)
class KeepEndorsementKey:
    """Make the endorsement key from ``template`` and keep it in the TPM."""

    template: EkTemplate


@dataclass(frozen=True)
class SetLockoutParameters:
    """Set the parameters against trying; see `wanted_lockout`."""


@dataclass(frozen=True)
class SetAuthorization:
    """Give ``hierarchy`` a value, or finish that."""

    hierarchy: Hierarchy


@dataclass(frozen=True)
class DisablePlatform:
    """Disable the platform hierarchy until the next restart."""


Action: TypeAlias = (
    Clear | MakeStorageRoot | KeepEndorsementKey | SetLockoutParameters | SetAuthorization | DisablePlatform
)


@dataclass(frozen=True)
class Item:
    """One thing that is wanted.

    Attributes:
        name: of what.
        now: how it is.
        change: what will be done; empty where it is as it is wanted.
        action: the same, for `tpm_mtls_keygen.provision.apply`.
    """

    name: str
    now: str
    change: str = ""
    action: Action | None = None


def make_plan(settings: Settings, observed: Observed, *, clear: bool = False) -> tuple[Item, ...]:
    """All that ``settings`` want, in the order in which it is done; ``clear`` begins with clearing the TPM.

    The storage root key comes first: it keeps new authorization values from the bus, and seals them. Then the
    authorizations, so that whether a lockout authorization that was begun is in force is known before it is needed.

    Raises:
        AuthorizationError: a hierarchy has a value that is needed and that nobody gave.
        StateError: the TPM does not let itself be cleared.
    """
    items: list[Item] = []
    if clear and observed.srk is not None:
        _require_clearable(observed)
        name = observed.srk.hex()
        change = "clear it: every key in it, and what they sealed, is lost"
        items.append(Item("the whole TPM", f"storage root key {name}", change, Clear(observed.srk)))
        observed = observed.cleared()
    items += _plan(settings, observed, cleared=bool(items))
    return tuple(items)


def _plan(settings: Settings, observed: Observed, *, cleared: bool) -> Iterator[Item]:
    if observed.srk is None:
        _require_known(Hierarchy.OWNER, observed)
        yield Item("storage root key", "none", "make it at 0x81000001", MakeStorageRoot())
    else:
        yield Item("storage root key", observed.srk.hex())
    for hierarchy in MANAGED:
        if hierarchy in settings.kept:
            yield _authorization(settings, hierarchy, observed)
    yield from _endorsement_keys(settings, observed)
    yield from _lockout_parameters(settings, observed, cleared=cleared)
    if settings.disable_platform:
        yield _platform(observed.platform)


def _endorsement_keys(settings: Settings, observed: Observed) -> Iterator[Item]:
    wanted = observed.certified if settings.endorsement_keys == CERTIFIED else settings.endorsement_keys
    if settings.endorsement_keys == CERTIFIED and not wanted:
        yield Item("endorsement keys", "none has a certificate")
    for template in wanted:
        name = f"endorsement key {template.value} ({template.algorithm})"
        if template in observed.endorsement_keys:
            yield Item(name, "persistent")
        else:
            _require_known(Hierarchy.OWNER, observed)
            _require_known(Hierarchy.ENDORSEMENT, observed)
            yield Item(name, "not persistent", "keep it in the TPM", KeepEndorsementKey(template))


def _lockout_parameters(settings: Settings, observed: Observed, *, cleared: bool) -> Iterator[Item]:
    now = observed.state.lockout
    wanted = wanted_lockout(settings, now)
    name = "lockout parameters"
    if not _lockout_settings(settings):
        return
    if cleared:
        yield Item(name, "the maker's", "set those that are wanted", SetLockoutParameters())
    elif now == wanted:
        yield Item(name, _words(now))
    else:
        _require_known(Hierarchy.LOCKOUT, observed)
        yield Item(name, _words(now), f"set {_words(wanted)}", SetLockoutParameters())


def wanted_lockout(settings: Settings, now: LockoutParameters) -> LockoutParameters:
    """The parameters ``now``, with those that ``settings`` want."""
    return replace(now, **_lockout_settings(settings))


def _lockout_settings(settings: Settings) -> dict[str, int]:
    """Those of `LockoutParameters` that ``settings`` want."""
    named = {
        "max_tries": settings.max_tries,
        "recovery_time": settings.recovery_time,
        "lockout_recovery": settings.lockout_recovery,
    }
    return {name: value for name, value in named.items() if value is not None}


def _authorization(settings: Settings, hierarchy: Hierarchy, observed: Observed) -> Item:
    name = f"{hierarchy.value} authorization"
    _require_known(hierarchy, observed)
    found = observed.authorizations[hierarchy]
    where = settings.kept[hierarchy]
    match found.standing:
        case Standing.KEPT:
            untried = ", not tried" if hierarchy is Hierarchy.LOCKOUT else ""
            return Item(name, f"set, kept in {where}{untried}")
        case Standing.BEGUN:
            change = f"finish what was begun: keep it in {where}"
        case Standing.GIVEN:
            change = f"change it, and keep it in {where}"
        case _:
            change = f"set it, and keep it in {where}"
    return Item(name, found.standing.value, change, SetAuthorization(hierarchy))


def _require_clearable(observed: Observed) -> None:
    if observed.state.clear_disabled:  # part 3, 24.7: the lockout authorization may forbid it, not allow it again
        raise StateError(
            "somebody forbade to clear this TPM (disableClear)",
            hint="clear it in the firmware's setup; where the platform hierarchy is open: tpm2_clearcontrol -C p c",
        )
    _require_known(Hierarchy.LOCKOUT, observed)


def _require_known(hierarchy: Hierarchy, observed: Observed) -> None:
    if observed.authorizations[hierarchy].standing is Standing.UNKNOWN:
        # the lockout authorization is not tried: it is unknown only where there is none to try
        known = "none is" if hierarchy is Hierarchy.LOCKOUT else "it is not one that is"
        raise AuthorizationError(
            f"the {hierarchy.value} hierarchy has an authorization value, and {known} kept or given",
            hint=f"give the one that it has: --{hierarchy.value}-auth prompt, file:F, credential:NAME or sealed:F",
            rc=_BAD_AUTH,
        )


def _platform(found: Platform) -> Item:
    name = "platform hierarchy"
    if found is Platform.OPEN:
        return Item(name, found.value, "disable it until the next restart", DisablePlatform())
    return Item(name, found.value)


def _words(parameters: LockoutParameters) -> str:
    return (
        f"{parameters.max_tries} tries, one forgotten after {parameters.recovery_time} s, "
        f"lockout authorization blocked for {parameters.lockout_recovery} s"
    )
