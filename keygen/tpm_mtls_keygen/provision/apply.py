"""Changes a TPM as a plan says. Killed anywhere and run again, it finishes; run once more, it changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, assert_never

from tpm_mtls.errors import AuthorizationError, StateError, TpmLockoutError, TpmRefusedError
from tpm_mtls.files import is_there, read_capped, remove_file, write_atomic
from tpm_mtls.tpm.hierarchies import EMPTY, Hierarchy
from tpm_mtls_keygen.provision.kept import begin, finish
from tpm_mtls_keygen.provision.observe import Given, observe
from tpm_mtls_keygen.provision.plan import (
    Clear,
    DisablePlatform,
    KeepEndorsementKey,
    MakeStorageRoot,
    SetAuthorization,
    SetLockoutParameters,
    Standing,
    make_plan,
    wanted_lockout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.provision.plan import Action, Item
    from tpm_mtls_keygen.provision.settings import Settings

JOURNAL: Final = "provision.clearing"
"""In the identity folder: Name, in hexadecimal, of the storage root key that a clear destroys or has destroyed."""

_JOURNAL_LIMIT: Final = 256  # bytes


class Provisioning:
    """One run for ``settings`` with an open ``tpm``.

    Attributes:
        plan: what is wanted, and what has to be changed for it.
    """

    def __init__(
        self, tpm: Tpm, settings: Settings, given: Given, folder: Path, *, destroys: bytes | None = None
    ) -> None:
        """Looks, and changes nothing.

        Args:
            tpm: an open TPM.
            settings: what is wanted.
            given: the authorization values that its hierarchies have.
            folder: the identity folder; need not be there.
            destroys: Name of the storage root key, where the TPM shall be cleared first.

        Raises:
            StateError: the storage root key has another Name than ``destroys``.
            TpmMtlsError: as `observe` and `make_plan`.
        """
        self._tpm = tpm
        self._settings = settings
        self._journal = folder / JOURNAL
        srk = tpm.srk.read()
        present = srk.name if srk is not None else None
        begun = _read_journal(self._journal)
        self._given = replace(given, lost=begun) if begun != present else given
        if destroys is not None and begun != destroys:
            _check_destroyed(destroys, present)
        self._observed = observe(tpm, settings, self._given)
        self.plan: Sequence[Item] = make_plan(
            settings, self._observed, clear=destroys is not None and destroys == present
        )

    def apply(self, tell: Callable[[str], None]) -> None:
        """Changes what the plan says; ``tell`` hears of each change before it is made. Nobody else may be at it.

        Raises:
            StateError: another program changed it back meanwhile.
            AuthorizationError: the lockout authorization is another one; that was tried once.
            TpmMtlsError: the TPM refuses, or a file cannot be written.
        """
        for item in self.plan:
            if item.action is not None:
                tell(f"{item.name}: {item.change}")
                self._perform(item.action)
        if any(item.action is not None for item in self.plan):
            self._check()
        if is_there(self._journal):
            remove_file(self._journal)

    def _check(self) -> None:
        observed = observe(self._tpm, self._settings, self._given)
        left = [item for item in make_plan(self._settings, observed) if item.action is not None]
        if left:
            raise StateError(
                f"the {left[0].name} is not as it was set: {left[0].now}",
                hint="does another program, or another administrator, provision this TPM?",
            )

    def _perform(self, action: Action) -> None:
        tpm = self._tpm
        match action:
            case Clear():
                self._clear(action.srk)
            case MakeStorageRoot():
                tpm.srk.ensure()
            case KeepEndorsementKey():
                tpm.endorsement.persist(action.template)
            case SetLockoutParameters():
                wanted = wanted_lockout(self._settings, tpm.hierarchies.state().lockout)
                with self._lockout_explained():
                    tpm.hierarchies.set_lockout_parameters(wanted)
            case SetAuthorization():
                self._set_authorization(action.hierarchy)
            case DisablePlatform():
                tpm.hierarchies.disable_platform()
            case _:
                assert_never(action)

    def _clear(self, srk: bytes) -> None:
        write_atomic(self._journal, srk.hex().encode())
        try:
            with self._lockout_explained():
                self._tpm.hierarchies.clear()
        except TpmRefusedError:
            remove_file(self._journal)
            raise
        self._given = Given(lost=srk)
        self._observed = observe(self._tpm, self._settings, self._given)

    @contextmanager
    def _lockout_explained(self) -> Iterator[None]:
        """What is kept counts before what is given: where it is the wrong one, to give another does not help."""
        try:
            yield
        except AuthorizationError as error:
            if self._observed.authorizations[Hierarchy.LOCKOUT].standing is Standing.KEPT:
                path = self._settings.kept[Hierarchy.LOCKOUT].path
                error.hint = f"{path} holds another value: move it away, since it counts first; {error.hint}"
            raise

    def _set_authorization(self, hierarchy: Hierarchy) -> None:
        kept, found = self._settings.kept[hierarchy], self._observed.authorizations[hierarchy]
        hierarchies = self._tpm.hierarchies
        is_begun = found.standing is Standing.BEGUN
        # a lockout authorization that is blocked may be the one that was begun all the same
        refusals = (AuthorizationError,) if is_begun else (AuthorizationError, TpmLockoutError)
        try:
            if is_begun:
                hierarchies.prove(hierarchy)
            else:
                if hierarchy is Hierarchy.LOCKOUT and found.standing is Standing.GIVEN:
                    # Killed later, the next run uses the value that was begun, and a wrong one blocks the hierarchy
                    # for a day: so the given one has to be gone before another is begun.
                    hierarchies.change_authorization(hierarchy, EMPTY)
                hierarchies.change_authorization(hierarchy, begin(self._tpm, kept, found.wanted))
        except refusals:
            if is_there(kept.begun):
                remove_file(kept.begun)  # so the TPM does not have it
            raise
        finish(kept)


def _check_destroyed(destroys: bytes, present: bytes | None) -> None:
    if present is None:
        raise StateError(
            "the TPM has no storage root key that could be destroyed", hint="run it again without that option"
        )
    if present != destroys:
        raise StateError(
            f"the TPM's storage root key is {present.hex()}, not {destroys.hex()}; nothing was changed",
            hint="is this the right machine? tpm-mtls provision --plan shows the Name",
        )


def _read_journal(path: Path) -> bytes | None:
    if not is_there(path):
        return None
    try:
        return bytes.fromhex(read_capped(path, limit=_JOURNAL_LIMIT).decode())
    except ValueError as error:
        raise StateError(f"{path} is damaged", hint="remove it; it only says what a clear destroyed") from error
