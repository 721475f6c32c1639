"""One health check: all of it, whatever fails."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tpm_mtls.attestation.health import HealthReport
from tpm_mtls.errors import IdentityError, PemError, StorageError, TpmMtlsError, TpmRefusedError, TpmUnavailableError
from tpm_mtls.identity import load_record
from tpm_mtls.tcti import is_raw, resolve_tcti
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.ledger import Ledger
from tpm_mtls_agent.health import checks
from tpm_mtls_agent.health.checks import Subject
from tpm_mtls_agent.health.classify import Result, Skipped, cautions, failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tpm_mtls.attestation.health import CheckName, Condition
    from tpm_mtls.authorization import Secret
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.tpm import Tpm


_Operation: TypeAlias = "Callable[[Tpm, Subject], Skipped | None]"

_CHECKS: Final[dict[CheckName, _Operation]] = {"wrap": checks.wrap, "quote": checks.quote, "sign": checks.sign}


@dataclass(frozen=True)
class Authorizations:
    """What the checks need to know.

    Attributes:
        srk: the storage root key's authorization value, if it has one.
        key: the TLS key's, if it has one. Where it is not known the signature is not checked.
    """

    srk: Secret | None = None
    key: Secret | None = None


def check_health(
    tcti: str | None,
    folder: Path,
    *,
    authorizations: Authorizations | None = None,
    ledger: Path | None = None,
    now: Callable[[], float] = time.time,
) -> HealthReport:
    """How the TPM is, by what it does (19 commands with an identity that was enrolled with evidence).

    1. It says how it is. 2. What it wraps comes back. 3. It quotes. 4. The TLS key signs. All four are tried, each over
    a connection of its own, so that no failure hides another. Nothing is written to NV memory, nothing stays loaded,
    and a TPM without resource manager must not be held by another connection.

    Args:
        tcti: where the TPM is; see `tpm_mtls.tcti.resolve_tcti`.
        folder: the identity folder; without an identity 3 and 4 are skipped, with a software key everything.
        authorizations: what the keys need.
        ledger: a file in which is written down what is loaded, so that the next check flushes it if this one is killed.
        now: the time, seconds since 1970.

    Raises:
        UsageError, StorageError: the configuration file is wrong, or the ledger cannot be opened.
    """
    record = _record(folder)
    if record is not None and not record.is_tpm:
        return HealthReport(time=int(now()), is_tpm=False)
    checker = _Checker(tcti, record, authorizations or Authorizations())
    with closing(Ledger(ledger)) if ledger is not None else nullcontext() as opened:
        checker.ledger = opened
        condition, trouble = checker.describe()
        subject = Subject(folder, record, checker.authorizations.key, condition)
        results = [checker.check(name, operation, subject) for name, operation in _CHECKS.items()]
    return HealthReport(
        time=int(now()),
        checks=tuple(each.as_check() for each in results),
        failures=failures(results, condition, trouble),
        warnings=cautions(results, condition, trouble, raw=checker.is_raw),
        condition=condition,
    )


class _Checker:
    """Opens the TPM for one operation after the other, and takes what each comes to."""

    def __init__(self, tcti: str | None, record: IdentityRecord | None, authorizations: Authorizations) -> None:
        self.authorizations = authorizations
        self.ledger: Ledger | None = None
        self.is_raw = False
        self._tcti = tcti
        self._expected = bytes.fromhex(record.srk_name) if record is not None else None

    def describe(self) -> tuple[Condition | None, TpmMtlsError | None]:
        """What the TPM says about itself, or why it does not."""
        try:
            with self._opened() as tpm:
                return tpm.capabilities.condition(), None
        except (TpmUnavailableError, TpmRefusedError) as error:
            return None, error

    def check(self, name: CheckName, operation: _Operation, subject: Subject) -> Result:
        """How ``operation`` ended."""
        begin = time.perf_counter()
        error: TpmMtlsError | None = None
        skipped: Skipped | None = None
        try:
            with self._opened() as tpm:
                skipped = operation(tpm, subject)
        except TpmMtlsError as failure:
            error = failure
        return Result(name, time.perf_counter() - begin, error, skipped)

    @contextmanager
    def _opened(self) -> Iterator[Tpm]:
        where = resolve_tcti(self._tcti)
        self.is_raw = is_raw(where)
        with open_tpm(
            where,
            srk_authorization=self.authorizations.srk,
            expected_srk_name=self._expected,
            ledger=self.ledger,
        ) as tpm:
            yield tpm


def _record(folder: Path) -> IdentityRecord | None:
    """The identity's record; none where there is none, or a damaged one, which the check of the signature will say."""
    with suppress(IdentityError, PemError, StorageError):
        return load_record(folder)
    return None
