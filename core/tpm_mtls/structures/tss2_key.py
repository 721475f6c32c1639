"""Key files in the ``TSS2 PRIVATE KEY`` form: what tpm2-openssl and other tools read and write.

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
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from tpm_mtls.errors import PemError
from tpm_mtls.files import PEM_LIMIT
from tpm_mtls.structures.public_area import PublicArea, parse_public_area

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOADABLE = ObjectIdentifier("2.23.133.10.1.3")
_OTHER_KINDS = {
    ObjectIdentifier("2.23.133.10.1.4"): "an importable key",
    ObjectIdentifier("2.23.133.10.1.5"): "sealed data",
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


@dataclass(frozen=True)
class Tss2Key:
    """A key file's content.

    Attributes:
        public: the public area.
        private: the private part, encrypted by its parent: content of TPM2B_PRIVATE, without its size.
        parent: handle of the parent: persistent, or a hierarchy whose standard primary it is (0x40000001).
        empty_auth: whether the key has no authorization value.
        has_policy: whether the file carries a policy ([1] or [3]); OpenSSL's provider refuses such a file.
        rsa_parent: whether the hierarchy's standard primary is the RSA-2048 one.
        description: what its maker wrote into it, if anything.
    """

    public: PublicArea
    private: bytes
    parent: int
    empty_auth: bool
    has_policy: bool = False
    rsa_parent: bool = False
    description: str | None = None

    def to_pem(
        self, policy: Sequence[PolicyCommand] = (), signed: Mapping[str, Sequence[PolicyCommand]] | None = None
    ) -> bytes:
        """The PEM file in the four-field form, which every tool reads; the optional fields are left out.

        Args:
            policy: commands that satisfy the key's policy, for tools that know the field; OpenSSL's provider does not.
            signed: policies that were signed for it, by their descriptions, each beginning with PolicyAuthorize.
        """
        approved = [_AuthPolicy(name=name or None, policy=_policies(each)) for name, each in (signed or {}).items()]
        der = asn1.encode_der(
            _TpmKey(
                type=LOADABLE,
                empty_auth=self.empty_auth,
                policy=_policies(policy) or None,
                secret=None,
                auth_policy=approved or None,
                description=None,
                rsa_parent=None,
                parent=self.parent,
                public=_sized(self.public.data),
                private=_sized(self.private),
            )
        )
        text = base64.b64encode(der)
        body = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
        return b"-----BEGIN TSS2 PRIVATE KEY-----\n" + body + b"-----END TSS2 PRIVATE KEY-----\n"


def parse_tss2_pem(data: bytes, name: str = "the key file") -> Tss2Key:
    """The first ``TSS2 PRIVATE KEY`` block of PEM ``data``; ``name`` says where it came from, for the errors.

    Accepted beyond strict DER: emptyAuth TRUE as 0x01, and emptyAuth absent (meaning FALSE). The optional fields are
    read. It is not verified that any TPM can load the key.

    Raises:
        PemError: no such block, oversized, truncated, or not what the format says.
    """
    if len(data) > PEM_LIMIT:
        raise _damaged(name, f"larger than {PEM_LIMIT} bytes")
    match = _BLOCK.search(data)
    if match is None:
        raise _damaged(name, "no complete TSS2 PRIVATE KEY block")
    try:
        der = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        key = asn1.decode_der(_TpmKey, _SLOPPY_TRUE.sub(lambda start: start.group(1) + b"\xff", der))
    except (binascii.Error, ValueError) as error:
        raise _damaged(name, "its content is damaged or truncated") from error
    if key.type != LOADABLE:
        raise _damaged(
            name, f"it holds {_OTHER_KINDS.get(key.type, f'type {key.type.dotted_string}')}, no loadable key"
        )
    return Tss2Key(
        public=parse_public_area(_unsized(key.public, name, "public")),
        private=_private(key.private, name),
        parent=_parent(key.parent, name),
        empty_auth=bool(key.empty_auth),
        has_policy=bool(key.policy or key.auth_policy),
        rsa_parent=bool(key.rsa_parent),
        description=key.description,
    )


def _policies(commands: Sequence[PolicyCommand]) -> list[_Policy]:
    return [_Policy(code=each.code, parameters=each.parameters) for each in commands]


def _damaged(name: str, what: str) -> PemError:
    return PemError(f"{name} is no usable TSS2 key: {what}", hint="copy the file again, or make a new key")


def _private(data: bytes, name: str) -> bytes:
    content = _unsized(data, name, "private")
    if not 0 < len(content) <= PRIVATE_LIMIT:
        raise _damaged(name, f"its private part has {len(content)} bytes")
    return content


def _parent(parent: int, name: str) -> int:
    if not 0 < parent <= 0xFFFFFFFF:  # noqa: PLR2004 - TPM_HANDLE has 32 bits
        raise _damaged(name, "its parent is no handle")
    return parent


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def _unsized(data: bytes, name: str, what: str) -> bytes:
    """The content of a TPM2B structure, whose size comes first."""
    if len(data) < 2 or int.from_bytes(data[:2], "big") != len(data) - 2:  # noqa: PLR2004 - the size has two bytes
        raise _damaged(name, f"its {what} part has another size than it says")
    return data[2:]
