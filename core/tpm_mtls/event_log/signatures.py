"""Secure Boot's lists of what it accepts and what it refuses, in words: certificates by name, hashes by their number.

UEFI Specification 2.10, 32.4.1 (EFI_SIGNATURE_LIST, EFI_SIGNATURE_DATA).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log.content import printable
from tpm_mtls.event_log.cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterable

_WHAT = "signature list"
_X509: Final = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")  # EFI_CERT_X509_GUID
_SHA256: Final = bytes.fromhex("2616c4c14c509240aca941f936934328")  # EFI_CERT_SHA256_GUID
_GUID: Final = 16
_SHOWN = 8  # certificates; a list has two to five


class Signature(NamedTuple):
    """What a list accepts or refuses.

    Attributes:
        kind: GUID of its type.
        data: a certificate (DER), or the hash of a program.
    """

    kind: bytes
    data: bytes


def signatures(content: bytes) -> frozenset[Signature] | None:
    """What is in the variable ``db``, ``dbx``, ``PK`` or ``KEK`` with this content; none if that is no such list."""
    cursor = Cursor(content, _WHAT)
    found: set[Signature] = set()
    try:
        while cursor.left:
            kind = cursor.take(_GUID)
            size, header, each = cursor.number(4), cursor.number(4), cursor.number(4)
            rest = Cursor(cursor.take(max(size - _GUID - 12, 0)), _WHAT)
            rest.take(header)
            if each <= _GUID:
                return None
            while rest.left:
                found.add(Signature(kind, rest.take(each)[_GUID:]))
    except EvidenceError:
        return None
    return frozenset(found)


def authority(content: bytes) -> str | None:
    """The name of the certificate in an EFI_SIGNATURE_DATA, which Secure Boot accepted a program by."""
    return certificate_name(content[_GUID:])


def in_words(found: Iterable[Signature]) -> str:
    """``certificate "Microsoft UEFI CA 2023", 3 hashes``."""
    words, hashes, others = [], 0, 0
    for each in sorted(found):
        if each.kind == _X509:
            words.append(f'certificate "{certificate_name(each.data) or each.data[:16].hex()}"')
        elif each.kind == _SHA256:
            hashes += 1
        else:
            others += 1
    if len(words) > _SHOWN:
        words[_SHOWN:] = [f"{len(words) - _SHOWN} certificates more"]
    words += [_many(hashes, "hash", "hashes")] if hashes else []
    words += [_many(others, "entry of another kind", "entries of other kinds")] if others else []
    return ", ".join(words) or "nothing"


def certificate_name(der: bytes) -> str | None:
    """The subject's common name of a certificate, or all of its name; none if ``der`` is none."""
    from cryptography import x509  # noqa: PLC0415 - only where a list of certificates is shown
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - the same

    try:
        subject = x509.load_der_x509_certificate(der).subject
        names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        value = names[0].value if names else subject.rfc4514_string()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return printable(value if isinstance(value, str) else value.decode(errors="replace"))


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
