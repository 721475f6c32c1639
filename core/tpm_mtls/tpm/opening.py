"""Opening a TPM, and leaving nothing loaded in it."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.ESAPI import ESAPI

from tpm_mtls.errors import TpmMtlsError, TpmUnavailableError
from tpm_mtls.reachability import with_reason
from tpm_mtls.tcti import is_raw, resolve_tcti
from tpm_mtls.tpm.boundary import command
from tpm_mtls.tpm.connection import Tpm
from tpm_mtls.tpm.leftovers import flush_leftovers
from tpm_mtls.tpm.resources import Resources
from tpm_mtls.tpm.sealed_authorization import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.authorization import HierarchyAuthorization, Secret
    from tpm_mtls.tpm.ledger import Ledger


@contextmanager
def open_tpm(
    tcti: str | None = None,
    *,
    owner_authorization: HierarchyAuthorization | None = None,
    srk_authorization: Secret | None = None,
    endorsement_authorization: HierarchyAuthorization | None = None,
    expected_srk_name: bytes | None = None,
    ledger: Ledger | None = None,
) -> Iterator[Tpm]:
    """An open TPM; whatever was loaded into it is flushed at the end of the block, an interrupt included.

    Args:
        tcti: where it is; see `tpm_mtls.tcti.resolve_tcti`.
        owner_authorization: authorization value of the owner hierarchy, if it has one; a sealed one is unsealed now.
        srk_authorization: authorization value of the storage root key, if it has one.
        endorsement_authorization: authorization value of the endorsement hierarchy, if it has one; as above.
        expected_srk_name: Name of the storage root key, to which sessions with secrets are salted; none for whatever
            key is there.
        ledger: what is loaded is written down there, and what a killed process left is flushed, where the TPM has no
            resource manager.

    Raises:
        TctiInvalidError: ``tcti`` is none.
        TpmUnavailableError: no TPM answers there.
    """
    where = resolve_tcti(tcti)
    context = _connect(where)
    try:
        ledger = ledger if is_raw(where) else None
        resources = Resources(context, where, ledger)
        if ledger is not None:
            flush_leftovers(resources, ledger)
        try:
            tpm = Tpm(resources, srk_authorization, expected_srk_name)
            resources.authorize(ESYS_TR.OWNER, resolve(tpm, owner_authorization))
            resources.authorize(ESYS_TR.ENDORSEMENT, resolve(tpm, endorsement_authorization))
            yield tpm
        except BaseException:
            with suppress(TpmMtlsError):  # the first error is the one to tell
                resources.flush_all()
            raise
        resources.flush_all()
    finally:
        context.close()


def _connect(where: str) -> ESAPI:
    try:
        with command("open the TPM", where), _ending_by_sigterm(where):
            return ESAPI(where)
    except TpmUnavailableError as error:
        explained = with_reason(error)
        if explained is error:
            raise
        raise explained from error


@contextmanager
def _ending_by_sigterm(where: str) -> Iterator[None]:
    """For the start of a ``cmd`` transport's program: libtss2 ends it by SIGTERM and waits, so it must not be blocked.

    What is blocked in this thread, the program inherits: src/tss2-tcti/tcti-cmd.c, reap_child.
    """
    if "cmd:" not in where:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
