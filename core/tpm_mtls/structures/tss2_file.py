"""Files in the ``TSS2 PRIVATE KEY`` form, of keys and of sealed data: what they hold, read and written.

ASN.1 Specification for TPM 2.0 Key Files (TCG, version 1.0 rev 1; before that draft-bottomley-tpm2-keys), section 3::

    TPMKey ::= SEQUENCE {
        type        OBJECT IDENTIFIER,
        emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
        policy      [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
        secret      [2] EXPLICIT OCTET STRING OPTIONAL,
        authPolicy  [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
        description [4] EXPLICIT UTF8String OPTIONAL,
        rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
        parent      INTEGER,
        pubkey      OCTET STRING,   -- TPM2B_PUBLIC
        privkey     OCTET STRING    -- TPM2B_PRIVATE
    }
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from tpm_mtls.errors import PemError
from tpm_mtls.files import PEM_LIMIT
from tpm_mtls.structures.public_area import PublicArea, parse_public_area

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kind(enum.Enum):
    """What a file holds: its type, 2.3."""

    LOADABLE = ObjectIdentifier("2.23.133.10.1.3")
    IMPORTABLE = ObjectIdentifier("2.23.133.10.1.4")
    SEALED = ObjectIdentifier("2.23.133.10.1.5")


_WORDS = {
    Kind.LOADABLE: "a loadable key",
    Kind.IMPORTABLE: "an importable key",
    Kind.SEALED: "sealed data",
}

PRIVATE_LIMIT = 1536
"""Bytes; the largest TPM2B_PRIVATE, of an RSA-4096 key, has about 800 with all five primes' halves wrapped."""

_BLOCK = re.compile(rb"-----BEGIN TSS2 PRIVATE KEY-----\s([A-Za-z0-9+/=\s]*)-----END TSS2 PRIVATE KEY-----")
# Some tools (tpm2-openssl among them) write TRUE as 0x01, which DER forbids: X.690, 11.1.
_SLOPPY_TRUE = re.compile(
    rb"\A(\x30(?:[\x00-\x7f]|\x81.|\x82..)\x06\x06\x67\x81\x05\x0a\x01[\x03-\x05]\xa0\x03\x01\x01)\x01", re.DOTALL
)


@asn1.sequence
class _Policy:
    code: Annotated[int, asn1.Explicit(0)]
    parameters: Annotated[bytes, asn1.Explicit(1)]


@asn1.sequence
class _AuthPolicy:
    name: Annotated[str | None, asn1.Explicit(0)]
    policy: Annotated[list[_Policy], asn1.Explicit(1)]


@asn1.sequence
class _TpmKey:
    type: ObjectIdentifier
    empty_auth: Annotated[bool | None, asn1.Explicit(0)]
    policy: Annotated[list[_Policy] | None, asn1.Explicit(1)]
    secret: Annotated[bytes | None, asn1.Explicit(2)]
    auth_policy: Annotated[list[_AuthPolicy] | None, asn1.Explicit(3)]
    description: Annotated[str | None, asn1.Explicit(4)]
    rsa_parent: Annotated[bool | None, asn1.Explicit(5)]
    parent: int
    public: bytes
    private: bytes


class PolicyCommand(NamedTuple):
    """A policy command, as the standard's policy fields hold it (4.1).

    Attributes:
        code: TPM_CC.
        parameters: the command's parameters, without the session's handle.
    """

    code: int
    parameters: bytes


class ApprovedPolicy(NamedTuple):
    """A policy that was signed for the object (5.1).

    Attributes:
        description: for people.
        commands: PolicyAuthorize first, with the signature.
    """

    description: str
    commands: tuple[PolicyCommand, ...]


@dataclass(frozen=True)
class Tss2File:
    """What a file holds.

    Attributes:
        kind: what it is.
        public: the public area.
        private: the private part, encrypted by its parent: content of TPM2B_PRIVATE, without its size.
        parent: handle of the parent: persistent, or a hierarchy whose standard primary it is (0x40000001).
        empty_auth: whether it has no authorization value.
        policy: commands that satisfy its policy ([1]).
        approved: policies that were signed for it ([3]).
        rsa_parent: whether the hierarchy's standard primary is the RSA-2048 one.
        description: what its maker wrote into it, if anything.
    """

    kind: Kind
    public: PublicArea
    private: bytes
    parent: int
    empty_auth: bool
    policy: tuple[PolicyCommand, ...] = ()
    approved: tuple[ApprovedPolicy, ...] = ()
    rsa_parent: bool = False
    description: str | None = None

    def to_pem(self) -> bytes:
        """The PEM file; optional fields that are empty are left out, and emptyAuth is always there."""
        der = asn1.encode_der(
            _TpmKey(
                type=self.kind.value,
                empty_auth=self.empty_auth,
                policy=_encoded(self.policy) or None,
                secret=None,
                auth_policy=[
                    _AuthPolicy(name=each.description or None, policy=_encoded(each.commands)) for each in self.approved
                ]
                or None,
                description=self.description,
                rsa_parent=self.rsa_parent or None,
                parent=self.parent,
                public=_sized(self.public.data),
                private=_sized(self.private),
            )
        )
        text = base64.b64encode(der)
        body = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
        return b"-----BEGIN TSS2 PRIVATE KEY-----\n" + body + b"-----END TSS2 PRIVATE KEY-----\n"


def parse_tss2_file(data: bytes, name: str, kind: Kind) -> Tss2File:
    """The first ``TSS2 PRIVATE KEY`` block of PEM ``data``; ``name`` says where it came from, for the errors.

    Accepted beyond strict DER: emptyAuth TRUE as 0x01, and emptyAuth absent (meaning FALSE). It is not verified that
    any TPM can load what it holds.

    Raises:
        PemError: no such block, oversized, truncated, not what the format says, or not of that ``kind``.
    """
    if len(data) > PEM_LIMIT:
        raise damaged(name, f"larger than {PEM_LIMIT} bytes", kind)
    match = _BLOCK.search(data)
    if match is None:
        raise damaged(name, "no complete TSS2 PRIVATE KEY block", kind)
    try:
        der = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        key = asn1.decode_der(_TpmKey, _SLOPPY_TRUE.sub(lambda start: start.group(1) + b"\xff", der))
    except (binascii.Error, ValueError) as error:
        raise damaged(name, "its content is damaged or truncated", kind) from error
    if key.type != kind.value:
        held = {each.value: words for each, words in _WORDS.items()}.get(key.type, f"type {key.type.dotted_string}")
        raise damaged(name, f"it holds {held}, no {_WORDS[kind].removeprefix('a ')}", kind)
    return Tss2File(
        kind=kind,
        public=parse_public_area(_unsized(key.public, name, "public", kind)),
        private=_private(key.private, name, kind),
        parent=_parent(key.parent, name, kind),
        empty_auth=bool(key.empty_auth),
        policy=_decoded(key.policy or ()),
        approved=tuple(ApprovedPolicy(each.name or "", _decoded(each.policy)) for each in key.auth_policy or ()),
        rsa_parent=bool(key.rsa_parent),
        description=key.description,
    )


def damaged(name: str, what: str, kind: Kind) -> PemError:
    """The error for the file ``name`` of which ``what`` is wrong."""
    if kind is Kind.SEALED:
        return PemError(
            f"{name} is no usable sealed data: {what}", hint="copy the file again; tpm-mtls seal makes them"
        )
    return PemError(f"{name} is no usable TSS2 key: {what}", hint="copy the file again, or make a new key")


def _encoded(commands: Sequence[PolicyCommand]) -> list[_Policy]:
    return [_Policy(code=each.code, parameters=each.parameters) for each in commands]


def _decoded(commands: Sequence[_Policy]) -> tuple[PolicyCommand, ...]:
    return tuple(PolicyCommand(each.code, each.parameters) for each in commands)


def _private(data: bytes, name: str, kind: Kind) -> bytes:
    content = _unsized(data, name, "private", kind)
    if not 0 < len(content) <= PRIVATE_LIMIT:
        raise damaged(name, f"its private part has {len(content)} bytes", kind)
    return content


def _parent(parent: int, name: str, kind: Kind) -> int:
    if not 0 < parent <= 0xFFFFFFFF:  # noqa: PLR2004 - TPM_HANDLE has 32 bits
        raise damaged(name, "its parent is no handle", kind)
    return parent


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def _unsized(data: bytes, name: str, what: str, kind: Kind) -> bytes:
    """The content of a TPM2B structure, whose size comes first."""
    if len(data) < 2 or int.from_bytes(data[:2], "big") != len(data) - 2:  # noqa: PLR2004 - the size has two bytes
        raise damaged(name, f"its {what} part has another size than it says", kind)
    return data[2:]
