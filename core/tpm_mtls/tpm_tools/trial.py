"""A trial: what of a TPM is proven step by step, and how long each step took."""

from __future__ import annotations

import hmac
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tpm_mtls.errors import EvidenceError, StateError
from tpm_mtls.tpm import OWNER_HIERARCHY, SRK_HANDLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.tpm import Tpm


_DEFECT: Final = "run it again; if it stays, look for a firmware update (tpm-mtls tpm info), or replace the TPM"


@dataclass(frozen=True)
class Step:
    """Something that was proven.

    Attributes:
        proven: in words.
        milliseconds: how long it took, the way to the TPM and back included.
    """

    proven: str
    milliseconds: float


@dataclass
class Trial:
    """One trial under way.

    Attributes:
        name: as in ``tpm-mtls tpm test NAME``.
        clock: seconds that only rise.
        steps: what was proven so far.
        facts: what else is worth knowing, for scripts.
    """

    name: str
    clock: Callable[[], float] = time.perf_counter
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def proving(self, what: str) -> Iterator[None]:
        """``what`` is proven when the block has ended without an error."""
        begun = self.clock()
        yield
        self.steps.append(Step(what, (self.clock() - begun) * 1000))

    def as_json(self, error: TpmMtlsError | None) -> dict[str, Any]:
        """The outcome, for scripts; ``error`` is what stopped it."""
        return {
            "test": self.name,
            "passed": error is None,
            "error": None if error is None else str(error),
            "steps": [{"proven": step.proven, "milliseconds": round(step.milliseconds, 3)} for step in self.steps],
            "milliseconds": round(sum(step.milliseconds for step in self.steps), 3),
            **self.facts,
        }


def check_same(found: bytes, expected: bytes, what: str) -> None:
    """Checks that the TPM came to the result that it must come to.

    Raises:
        EvidenceError: it did not.
    """
    if not hmac.compare_digest(found, expected):
        raise EvidenceError(f"the TPM does not compute right: {what}", hint=_DEFECT)


def check_accepted(use: Callable[[], object], refusal: type[Exception], what: str) -> None:
    """Checks that ``use`` does not end with a ``refusal``.

    Raises:
        EvidenceError: it does.
    """
    try:
        use()
    except refusal as error:
        raise EvidenceError(f"the TPM does not compute right: {what}", hint=_DEFECT) from error


def check_refused(use: Callable[[], object], refusal: type[Exception] | tuple[type[Exception], ...], what: str) -> None:
    """Checks that ``use`` ends with a ``refusal`` as it must.

    Raises:
        EvidenceError: it was accepted.
    """
    try:
        use()
    except refusal:
        return
    raise EvidenceError(f"the TPM accepts what it must refuse: {what}", hint=_DEFECT)


def parent_for_trials(tpm: Tpm) -> int:
    """Under what a key for a trial is made: the storage root key, else a primary key that is not kept (one command)."""
    return SRK_HANDLE if tpm.srk.read() is not None else OWNER_HIERARCHY


def require_storage_root(tpm: Tpm) -> None:
    """Checks that there is a storage root key, which sessions need that keep secrets from the bus (one command).

    Raises:
        StateError: there is none; a trial makes nothing that stays.
    """
    if tpm.srk.read() is None:
        raise StateError(
            f"there is no storage root key at {SRK_HANDLE:#010x} yet, and a test makes nothing that stays",
            hint="enrolling makes it: tpm-mtls keygen first-boot; so does tpm-mtls keygen create --out test.key.pem",
        )
