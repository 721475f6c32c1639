"""Which certificates their CA has revoked: the CRL file, read again whenever it changes.

The rules (`read_crls`, `RevocationLists.verdict`) are pure; `CrlFile` is the thin shell with the file and the clock.
Everything fails closed: without a fresh CRL that its CA signed, nobody's status is known.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tpm_mtls.certificates import UNREADABLE
from tpm_mtls.errors import CredentialError, PemError, StorageError
from tpm_mtls.files import read_capped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls_server.peer import Peer

CRL_LIMIT = 4 * 1024 * 1024
"""Bytes read from the CRL file: about 100,000 revoked certificates, which take 0.1 s to read."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far the CA's clock may run before ours; as Kerberos allows (RFC 4120, 5.9.1 names five minutes)."""

_HINT = "write it again: tpm-mtls pki crl"


class Verdict(enum.Enum):
    """What is known about a certificate."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Crl:
    """One verified CRL.

    Attributes:
        issuer: the CA's name (DER).
        issuer_key: the CA's subject key identifier; none when its certificate has none.
        number: cRLNumber (RFC 5280, 5.2.3); 0 when absent.
        this_update: when it was issued.
        next_update: when the next one is due.
        serials: the revoked certificates, those on hold included.
    """

    issuer: bytes
    issuer_key: bytes | None
    number: int
    this_update: datetime
    next_update: datetime
    serials: frozenset[int]


@dataclass(frozen=True)
class RevocationLists:
    """The CRLs of one file."""

    crls: tuple[Crl, ...]

    def problem(self, now: datetime) -> str | None:
        """Why these CRLs say nothing at ``now``; none when all are fresh (RFC 5280, 5.1.2.4 and 5.1.2.5)."""
        for crl in self.crls:
            if now > crl.next_update:
                return f"the CRL is stale: the next one was due at {crl.next_update:%Y-%m-%d %H:%M:%S} UTC"
            if now < crl.this_update - CLOCK_SKEW:
                return f"the CRL is from the future: it was issued at {crl.this_update:%Y-%m-%d %H:%M:%S} UTC"
        return None

    def verdict(self, peer: Peer, *, now: datetime) -> Verdict:
        """The status of the peer's certificate at ``now``.

        1. All CRLs of the file are fresh.
        2. One is by the certificate's issuer: the same name, and the same key if the certificate says which.
        3. None of those lists the serial number.
        """
        if self.problem(now) is not None:  # 1
            return Verdict.UNKNOWN
        fitting = [crl for crl in self.crls if crl.issuer == peer.issuer and _same_key(crl, peer)]
        if not fitting:  # 2
            return Verdict.UNKNOWN
        return Verdict.REVOKED if any(peer.serial in crl.serials for crl in fitting) else Verdict.GOOD  # 3

    def older_than(self, other: RevocationLists) -> bool:
        """Whether one of these CRLs has a lower number than the same CA's in ``other``."""
        numbers = {(crl.issuer, crl.issuer_key): crl.number for crl in other.crls}
        return any(crl.number < numbers.get((crl.issuer, crl.issuer_key), 0) for crl in self.crls)


def _same_key(crl: Crl, peer: Peer) -> bool:
    return None in {crl.issuer_key, peer.issuer_key} or crl.issuer_key == peer.issuer_key


def read_crls(data: bytes, authorities: Sequence[x509.Certificate]) -> RevocationLists:
    """The CRLs in ``data``: one in DER, or one or more in PEM.

    1. Each is a CRL (RFC 5280, 5) with a nextUpdate.
    2. Each is complete for its CA's end-entity certificates: no delta, indirect or partial CRL, no critical extension
       that we do not know (5.2).
    3. One of ``authorities`` has the issuer's name, may sign CRLs (keyUsage cRLSign, 4.2.1.3) and signed it with
       SHA-2.

    The caller vouches for ``authorities``. Not verified: freshness (`RevocationLists.problem`).

    Raises:
        PemError: step 1.
        CredentialError: step 2 or 3.
    """
    try:
        parsed = _parse(data)
        return RevocationLists(tuple(_check(crl, authorities) for crl in parsed))
    except UNREADABLE as error:
        raise PemError("the CRL is damaged", hint=_HINT) from error


_BEGIN = b"-----BEGIN X509 CRL-----"
_END = b"-----END X509 CRL-----"


def _parse(data: bytes) -> list[x509.CertificateRevocationList]:
    if _BEGIN not in data:
        return [x509.load_der_x509_crl(data)]
    blocks = data.split(_BEGIN)[1:]
    return [x509.load_pem_x509_crl(_BEGIN + block) for block in blocks]


def _check(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> Crl:
    next_update = crl.next_update_utc
    if next_update is None:  # 1
        raise PemError("the CRL does not say when the next one is due", hint=_HINT)
    _check_complete(crl)  # 2
    signer = _signer(crl, authorities)  # 3
    return Crl(
        issuer=crl.issuer.public_bytes(),
        issuer_key=_key_identifier(signer),
        number=_number(crl),
        this_update=crl.last_update_utc,
        next_update=next_update,
        serials=frozenset(_revoked_serial(entry) for entry in crl),
    )


def _check_complete(crl: x509.CertificateRevocationList) -> None:
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            partial = (
                value.only_contains_ca_certs
                or value.only_contains_attribute_certs
                or value.indirect_crl
                or value.only_some_reasons
            )
            if partial:
                raise CredentialError("the CRL covers only a part of the CA's device certificates", hint=_HINT)
        elif extension.critical:
            raise CredentialError(
                f"the CRL has a critical extension that is not understood ({extension.oid.dotted_string})", hint=_HINT
            )


def _revoked_serial(entry: x509.RevokedCertificate) -> int:
    for extension in entry.extensions:
        if extension.critical:  # certificateIssuer of an indirect CRL, or something newer (RFC 5280, 5.3)
            raise CredentialError(
                f"the CRL has a critical entry extension that is not understood ({extension.oid.dotted_string})",
                hint=_HINT,
            )
    return entry.serial_number


def _signer(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> x509.Certificate:
    named = [authority for authority in authorities if authority.subject == crl.issuer and _may_sign_crls(authority)]
    if not named:
        raise CredentialError(
            f"the CRL is by {crl.issuer.rfc4514_string() or 'nobody'}, which is none of our CAs",
            hint="put the issuing CA's certificate into the --client-ca file too",
        )
    if not isinstance(crl.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        raise CredentialError("the CRL is signed with a hash that is not accepted", hint="sign it with SHA-256 or more")
    for authority in named:
        key = authority.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and crl.is_signature_valid(key):
            return authority
    raise CredentialError("the CRL's signature is wrong", hint=_HINT)


def _may_sign_crls(authority: x509.Certificate) -> bool:
    try:
        return authority.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


class CrlFile:
    """The CRL file: looked at (``stat``) at each question, read again when it changed.

    A CRL that is older (cRLNumber, RFC 5280, 5.2.3) than one that was seen before is not believed.
    """

    def __init__(self, path: Path, authorities: Sequence[x509.Certificate], *, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._authorities = tuple(authorities)
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._lists: RevocationLists | None = None
        self._newest: RevocationLists | None = None
        self._problem = ""

    def problem(self) -> str | None:
        """Why the file answers nothing right now (missing, damaged, stale, …); none when it does."""
        self._refresh()
        if self._lists is None:
            return self._problem
        return self._lists.problem(self._clock())

    def verdict(self, peer: Peer) -> Verdict:
        """The status of the peer's certificate right now; ``UNKNOWN`` whenever `problem` is not none."""
        self._refresh()
        return Verdict.UNKNOWN if self._lists is None else self._lists.verdict(peer, now=self._clock())

    def lists(self) -> RevocationLists | None:
        """What the file holds right now; none if it cannot be believed."""
        self._refresh()
        return self._lists

    def _refresh(self) -> None:
        seen = self._stat()  # before the read: a file that changes in between is read once more at the next question
        if seen is not None and seen == self._seen:
            return
        self._lists, self._seen = None, seen
        try:
            self._lists = self._read()
        except StorageError:
            self._problem, self._seen = "the CRL file cannot be read", None
        except CredentialError as error:
            self._problem = str(error)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)

    def _read(self) -> RevocationLists:
        lists = read_crls(read_capped(self._path, limit=CRL_LIMIT), self._authorities)
        if self._newest is not None and lists.older_than(self._newest):
            raise CredentialError("the CRL is older than the one before it", hint=_HINT)
        self._newest = lists
        return lists
