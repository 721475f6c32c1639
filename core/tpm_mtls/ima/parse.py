"""Reading ``binary_runtime_measurements``. Strict, in linear time.

An entry, as ima_measurements_show writes it (Linux, security/integrity/ima/ima_fs.c); numbers are of four bytes::

    PCR | SHA-1 template digest | size, template's name | size, template data

The template data are its fields, each with its size before it. Only the oldest template, ``ima``, differs: no size of
the data, and none of its digest. Numbers have the machine's byte order, or are little-endian (``ima_canonical_fmt``).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal, NamedTuple, TypeAlias

from tpm_mtls.attestation.messages import IMA_LOG_LIMIT
from tpm_mtls.errors import EvidenceError
from tpm_mtls.ima.entries import ImaEntry, ImaLog
from tpm_mtls.policy.document import PCRS

__all__ = ["IMA_LOG_LIMIT", "parse_ima_log"]

_Order: TypeAlias = Literal["little", "big"]

_SHA1_SIZE: Final = 20
_NO_DIGEST: Final = bytes(_SHA1_SIZE)  # of a violation
_NAME_LIMIT: Final = 255  # of a template, and of a file's name in the template ima (IMA_EVENT_NAME_LEN_MAX)
_PADDED_NAME: Final = 256  # how long the name is where the digest of the template ima is made
_OLDEST: Final = "ima"
_FIELDS: Final = {
    "ima-ng": "d-ng|n-ng",
    "ima-ngv2": "d-ngv2|n-ng",
    "ima-sig": "d-ng|n-ng|sig",
    "ima-sigv2": "d-ngv2|n-ng|sig",
    "ima-buf": "d-ng|n-ng|buf",
    "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
"""The templates that Linux knows by name: security/integrity/ima/ima_template.c."""

_DIGESTS: Final = ("d-ng", "d-ngv2", "d")
_NAMES: Final = ("n-ng", "n")
_NAME: Final = re.compile(rb"[A-Za-z0-9|_-]{1,255}")
_DIGEST: Final = re.compile(rb"(?:(?:ima|verity):)?([a-z0-9_()-]{1,32}):\0(.{1,64})", re.DOTALL)  # d-ng, d-ngv2


class _Measured(NamedTuple):
    """What an entry says that it measured."""

    path: str = ""
    algorithm: str = ""
    digest: bytes = b""


def parse_ima_log(data: bytes) -> ImaLog:
    """The list ``data``, as Linux gives it (``/sys/kernel/security/ima/binary_runtime_measurements``).

    1. It has at most `IMA_LOG_LIMIT` bytes, and ends where its last entry does. It may be empty.
    2. Each entry names a PCR of 0 to 23, and a template by a printable name.
    3. The fields of a known template are all there, with their sizes, and nothing else is.
    4. Each entry's template digest is that of its data, or zeros: a violation.

    Not verified: that any of it happened.

    Raises:
        EvidenceError: a step failed.
    """
    if len(data) > IMA_LOG_LIMIT:  # 1
        raise EvidenceError(
            f"an IMA list of more than {IMA_LOG_LIMIT} bytes", hint="this is not the file that was meant"
        )
    reader = _Reader(data, "little" if int.from_bytes(data[:4], "little") in PCRS else "big")
    entries: list[ImaEntry] = []
    while reader.left:
        reader.what = f"IMA list: entry {len(entries)}"
        entries.append(_entry(reader))
    return ImaLog(tuple(entries))


class _Reader:
    """Reads ``data`` from its beginning."""

    def __init__(self, data: bytes, order: _Order, what: str = "IMA list") -> None:
        self._data = data
        self._at = 0
        self.order: _Order = order
        self.what = what

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.malformed("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), self.order)

    def sized(self) -> bytes:
        return self.take(self.number())

    def malformed(self, why: str) -> EvidenceError:
        return EvidenceError(
            f"malformed {self.what}: {why}",
            hint="copy it again, as it is: /sys/kernel/security/ima/binary_runtime_measurements",
        )


def _entry(reader: _Reader) -> ImaEntry:
    pcr, digest, name = reader.number(), reader.take(_SHA1_SIZE), reader.sized()
    if pcr not in PCRS or not _NAME.fullmatch(name):  # 2
        raise reader.malformed(f"PCR {pcr}, and a template's name of {len(name)} bytes: neither can be")
    template = name.decode("ascii")
    violation = digest == _NO_DIGEST
    if template == _OLDEST:
        data, measured = _oldest(reader)
    else:
        data = reader.sized()
        measured = _measured(_Reader(data, reader.order, reader.what), template, violation=violation)
    if not violation and hashlib.sha1(data, usedforsecurity=False).digest() != digest:  # 4
        raise reader.malformed("its digest is not that of its data")
    return ImaEntry(pcr, template, data, violation, *measured)


def _oldest(reader: _Reader) -> tuple[bytes, _Measured]:
    digest, name = reader.take(_SHA1_SIZE), reader.sized()
    if len(name) > _NAME_LIMIT:
        raise reader.malformed(f"a file's name of {len(name)} bytes")
    return digest + name.ljust(_PADDED_NAME, b"\0"), _Measured(_text(name), "sha1", digest)


def _measured(fields: _Reader, template: str, *, violation: bool) -> _Measured:
    """What the fields of a template with sizes say; of one that is not known, nothing.

    The template's name is not measured, so that a list may lie about it. Digest and name are therefore the first two
    fields, as in every template of the kernel, and nothing else is ever taken for them.
    """
    known = _FIELDS.get(template, template if "|" in template else "").split("|")
    if known[0] not in _DIGESTS or known[1] not in _NAMES:
        return _Measured()
    digest, name, *_ = [fields.sized() for _ in known]
    if fields.left:  # 3
        raise fields.malformed(f"{fields.left} bytes more than the template {template} has")
    path = _text(name.removesuffix(b"\0"))
    if violation:  # its digest is a place-holder
        return _Measured(path)
    if known[0] == "d":
        return _Measured(path, "sha1", digest) if len(digest) == _SHA1_SIZE else _Measured(path)
    match = _DIGEST.fullmatch(digest)
    return _Measured(path, match[1].decode("ascii"), match[2]) if match else _Measured(path)


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")
