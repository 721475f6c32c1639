"""Whether a server's clients were revoked: the file with the CAs' lists, read again when it was replaced.

Everything fails closed: where the file does not say what is revoked now, no client certificate is accepted. OpenSSL
looks the certificates up (RFC 5280, 6.3), the issuers' signatures on the lists included.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import CredentialError, StorageError
from tpm_mtls.files import read_capped
from tpm_mtls.openssl import crls, stores
from tpm_mtls.openssl.stores import Store
from tpm_mtls.tls.key_failures import bare
from tpm_mtls.tls.key_source import stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.openssl.crls import Crl
    from tpm_mtls.tls.key_source import FileStamp

_log = logging.getLogger(__name__)

CRL_LIMIT = 4 * 1024 * 1024
"""Bytes read from the file: about 100,000 revoked certificates. Each full handshake hashes its lists."""

_FETCH = "fetch the lists of all CAs of the chain again (issuing.crl and root.crl), into one file"


@dataclass(frozen=True)
class Period:
    """When all lists of a file are in force.

    Attributes:
        begin: the latest thisUpdate.
        end: the earliest nextUpdate.
    """

    begin: datetime
    end: datetime

    def problem(self, path: Path, now: datetime) -> CredentialError | None:
        """Why the lists in ``path`` say nothing at ``now``; none if they do (RFC 5280, 5.1.2.4 and 5.1.2.5)."""
        if now > self.end:
            return CredentialError(
                f"the list of revoked certificates {path} is stale: the next one was due at "
                f"{self.end:%Y-%m-%d %H:%M:%S} UTC",
                hint=_FETCH,
            )
        if now < self.begin:
            return CredentialError(
                f"the list of revoked certificates {path} is from the future: it was issued at "
                f"{self.begin:%Y-%m-%d %H:%M:%S} UTC",
                hint="set this machine's clock (timedatectl shows it)",
            )
        return None


class RevocationLists:
    """Those of one server context, in force for the connections that are made from it.

    No thread may make a connection from the context during a call.

    Attributes:
        problem: why no client certificate is accepted right now; none when they are.
    """

    problem: TpmMtlsError | None = None

    def __init__(self, ssl_ctx: int, path: Path, *, clock: Callable[[], datetime]) -> None:
        """Reads them.

        1. The file has no more than `CRL_LIMIT` bytes, and holds one list or more, in PEM or in DER form.
        2. Each is complete (no delta list) and signed with SHA-2.
        3. For each trust anchor that is not revoked itself there is a list that it has signed.
        4. None is older (cRLNumber) than one by the same CA before.
        5. All have begun and none has ended.

        Args:
            ssl_ctx: its trust anchors are there; not to be used after it is freed.
            path: the file.
            clock: the present time.

        Raises:
            PemError: step 1.
            CredentialError: step 2, 3 or 5.
            StorageError: the file cannot be read.
        """
        self._ssl_ctx = ssl_ctx
        self._path = path
        self._clock = clock
        self._newest: dict[Any, int] = {}  # cRLNumber by issuer
        self._seen = stamp_of(path)  # before it is read: what is replaced meanwhile is noticed at the next handshake
        self._store, self._period = self._read()
        problem = self._period.problem(path, clock())
        if problem is not None:
            raise problem
        with stores.trust_anchors(ssl_ctx) as anchors:
            self._none = Store(anchors, [], _mark(b""))
        self._damage: TpmMtlsError | None = None
        self._installed = self._install(self._store)

    def follow(self) -> None:
        """Before a connection is made: takes over a file that was replaced, and sees whether its lists have ended.

        One call of stat(2), and nothing else, while it is the same. What cannot be used is told once, and from then on
        no client certificate is accepted before the file is good.
        """
        seen = stamp_of(self._path)
        if seen is None or seen != self._seen:
            self._read_again(seen)
        problem = self._damage or self._period.problem(self._path, self._clock())
        if problem is not None and str(problem) != str(self.problem):
            _log.warning("no client certificate is accepted: %s", str(problem))
        elif problem is None and self.problem is not None:
            _log.info("client certificates are accepted again")
        wanted = self._store if problem is None else self._none
        if wanted is not self._installed:
            self._installed = self._install(wanted)
        self.problem = problem

    def _install(self, store: Store) -> Store:
        store.install(self._ssl_ctx)
        return store

    def _read_again(self, seen: FileStamp | None) -> None:
        try:
            self._store, self._period = self._read()
        except StorageError as error:
            self._damage, self._seen = bare(error), None  # what may pass without a change of the file
        except CredentialError as error:
            self._damage, self._seen = bare(error), seen
        else:
            self._damage, self._seen = None, seen

    def _read(self) -> tuple[Store, Period]:
        data = read_capped(self._path, limit=CRL_LIMIT)
        try:
            with crls.read_crls(data) as read, stores.trust_anchors(self._ssl_ctx) as anchors:
                _check_form(read)  # 2
                good = [anchor for anchor in anchors if not any(crls.lists(crl, anchor) for crl in read)]
                for anchor in good:
                    _check_signature(read, anchor)  # 3
                self._check_number(read)  # 4
                period = Period(max(crl.this_update for crl in read), min(crl.next_update for crl in read))
                return Store(good, [crl.pointer for crl in read], _mark(data)), period
        except CredentialError as error:
            raise type(error)(f"the list of revoked certificates {self._path}: {error}", hint=error.hint) from error

    def _check_number(self, read: Sequence[Crl]) -> None:
        for crl in read:
            if crl.number < self._newest.get(crl.issuer, crl.number):
                raise CredentialError(f"that of {crl.issuer_name} is older than the one before it", hint=_FETCH)
        for crl in read:
            self._newest[crl.issuer] = max(crl.number, self._newest.get(crl.issuer, crl.number))


def _check_form(read: Sequence[Crl]) -> None:
    for crl in read:
        if crl.is_delta:
            raise CredentialError(f"that of {crl.issuer_name} is a delta, and not complete", hint=_FETCH)
        if not crl.is_sha_2:
            raise CredentialError(
                f"that of {crl.issuer_name} is signed with a hash that is not accepted",
                hint="the CA must sign it with SHA-256 or more",
            )


def _check_signature(read: Sequence[Crl], anchor: int) -> None:
    by_name = [crl for crl in read if crls.is_by(crl, anchor)]
    if not by_name:
        raise CredentialError(f"none is by {crls.subject_of(anchor)}, which is trusted", hint=_FETCH)
    if not any(crls.is_signed_by(crl, anchor) for crl in by_name):
        raise CredentialError(f"the signature of {crls.subject_of(anchor)} is wrong", hint=_FETCH)


def _mark(data: bytes) -> bytes:
    """By which sessions are bound to the lists in ``data``, also in another process that has the same ticket keys."""
    digest = hashlib.sha256(data).digest()[: stores.MARK_SIZE]
    return digest[:-1] + bytes([digest[-1] | 1])
