"""How a TPM is, for `tpm_mtls_keygen.provision.plan`. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpm_mtls.errors import StorageRootKeyChangedError
from tpm_mtls.tpm.hierarchies import EMPTY, Hierarchy
from tpm_mtls.tpm.sealed_authorization import resolve
from tpm_mtls_keygen.provision.kept import read_kept
from tpm_mtls_keygen.provision.plan import MANAGED, Authorization, Observed, Platform, Standing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.authorization import HierarchyAuthorization, Secret
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.provision.settings import Settings


@dataclass(frozen=True)
class Given:
    """What somebody says about a TPM.

    Attributes:
        values: authorization values that hierarchies have now.
        lost: Name of a storage root key that was cleared away; what it sealed does not count.
    """

    values: Mapping[Hierarchy, HierarchyAuthorization] = field(default_factory=dict)
    lost: bytes | None = None


def observe(tpm: Tpm, settings: Settings, given: Given) -> Observed:
    """How ``tpm`` is; the values that its hierarchies have are in use from now on, as far as they are known.

    The lockout authorization is not tried, as a wrong one would lock it: what is kept, else what is given, counts.

    Raises:
        StorageError, CredentialError, StateError, ForeignKeyError: see `kept.read_kept`.
    """
    srk = tpm.srk.read_again()
    state = tpm.hierarchies.state()
    authorizations = {
        each: _authorization(tpm, settings, given, each)
        if each in state.has_authorization
        else Authorization(Standing.NONE, wanted=_wanted(tpm, settings, given, each))
        for each in MANAGED
    }
    for each, found in authorizations.items():
        tpm.hierarchies.authorize(each, found.current)
    return Observed(
        state=state,
        srk=srk.name if srk is not None else None,
        endorsement_keys=tpm.endorsement.persisted(),
        certified=tpm.endorsement.certified(),
        authorizations=authorizations,
        platform=_platform(tpm, enabled=state.platform_enabled),
    )


def _authorization(tpm: Tpm, settings: Settings, given: Given, hierarchy: Hierarchy) -> Authorization:
    """Of a ``hierarchy`` that has a value: which of those that are known it is."""
    kept = begun = None
    if hierarchy in settings.kept:
        kept = read_kept(tpm, settings.kept[hierarchy], lost=given.lost)
        begun = read_kept(tpm, settings.kept[hierarchy], begun=True, lost=given.lost)
    present = resolve(tpm, given.values.get(hierarchy))
    for value, standing in ((kept, Standing.KEPT), (begun, Standing.BEGUN), (present, Standing.GIVEN)):
        if value is not None and (hierarchy is Hierarchy.LOCKOUT or tpm.hierarchies.accepts(hierarchy, value)):
            return Authorization(standing, value, wanted=begun or kept)
    return Authorization(Standing.UNKNOWN)


def _wanted(tpm: Tpm, settings: Settings, given: Given, hierarchy: Hierarchy) -> Secret | None:
    """The value that was begun, or lies there already, for a ``hierarchy`` that has none."""
    if hierarchy not in settings.kept:
        return None
    kept = settings.kept[hierarchy]
    try:
        return read_kept(tpm, kept, begun=True, lost=given.lost) or read_kept(tpm, kept, lost=given.lost)
    except StorageRootKeyChangedError as error:
        error.hint = f"if this TPM was cleared, remove {kept.path}: it has no {hierarchy.value} authorization any more"
        raise


def _platform(tpm: Tpm, *, enabled: bool) -> Platform:
    if not enabled:
        return Platform.DISABLED
    return Platform.OPEN if tpm.hierarchies.accepts(Hierarchy.PLATFORM, EMPTY) else Platform.LOCKED
