"""A key's or sealed object's policy as a file, and policies that an operator signed for it.

``<Name of the object, hex>.policy.json`` lists, in their order, the assertions that lead to the object's authPolicy.
``….signed-policy.json`` is what PolicyAuthorize takes: assertions, and the operator's signature over their digest. All
byte strings are lower-case hexadecimal; the relay (`tpm_mtls_relay`) reads the same files by its own means.

TPM 2.0 Library part 1 rev 1.59, 19.7 (enhanced authorization); part 3, 23 (the commands).
"""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, Union

import msgspec

from tpm_mtls.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT: Final = 1
LIMIT: Final = 64 * 1024
"""Bytes of a policy file."""

BRANCHES: Final = range(2, 9)
"""How many branches PolicyOR takes: TPML_DIGEST, part 2, 10.9.3."""

BANKS: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
"""The PCR banks, and how many bytes a value has."""

PCRS: Final = range(24)
"""The PCRs that every PC Client TPM has: TCG PC Client Platform TPM Profile 1.05, 4.6."""

_DEPTH = 2  # of branches in branches

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Hex = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2})*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z", description="SHA-256")]
Name = Annotated[str, msgspec.Meta(pattern=r"\A000b[0-9a-f]{64}\Z", description="nameAlg SHA-256 and the digest")]
Index = Annotated[str, msgspec.Meta(pattern=r"\A0x01[0-9a-f]{6}\Z")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them have in common."""


class PolicyPcr(_Strict, frozen=True, kw_only=True, tag_field="type", tag="pcr"):
    """TPM2_PolicyPCR: these PCRs have these values.

    Attributes:
        bank: ``sha256``, …
        pcrs: their numbers, ascending.
        digest: pcrDigest: SHA-256 over the values, one after the other.
        values: the values, by number.
        recorded: when they were read, ISO 8601; for people.
    """

    bank: str
    pcrs: tuple[int, ...]
    digest: Digest
    values: dict[int, Hex]
    recorded: Text


class PolicyAuthValue(_Strict, frozen=True, kw_only=True, tag_field="type", tag="auth-value"):
    """TPM2_PolicyAuthValue: whoever uses the object knows its authorization value."""


class PolicyNv(_Strict, frozen=True, kw_only=True, tag_field="type", tag="nv"):
    """TPM2_PolicyNV: a counter in the NV memory is not beyond a version.

    Attributes:
        index: NV index of the counter.
        name: the index's Name, once it was written.
        operation: ``unsigned-le``.
        operand: the version, 8 bytes.
    """

    index: Index
    name: Name
    operation: Annotated[str, msgspec.Meta(pattern=r"\Aunsigned-le\Z")] = "unsigned-le"
    operand: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]

    @property
    def version(self) -> int:
        """The version that the counter must not have passed."""
        return int(self.operand, 16)


class PolicyOr(_Strict, frozen=True, kw_only=True, tag_field="type", tag="or"):
    """TPM2_PolicyOR: one of the branches holds."""

    branches: tuple[tuple[Assertion, ...], ...]


class Signer(_Strict, frozen=True, kw_only=True):
    """The key by which an operator signs policies.

    Attributes:
        public: TPMT_PUBLIC, as TPM2_LoadExternal takes it.
        name: its Name.
    """

    public: Hex
    name: Name


class PolicyAuthorize(_Strict, frozen=True, kw_only=True, tag_field="type", tag="authorize"):
    """TPM2_PolicyAuthorize: whatever policy the signer approved holds.

    Attributes:
        signer: who signs.
        policy_ref: for what the signed policies must be meant; may be empty.
    """

    signer: Signer
    policy_ref: Hex


Assertion = Union[PolicyPcr, PolicyAuthValue, PolicyNv, PolicyOr, PolicyAuthorize]  # noqa: UP007 - PolicyOr's annotation is resolved by this name


class PolicyDocument(_Strict, frozen=True, kw_only=True):
    """``….policy.json``: an object's policy.

    Attributes:
        format: version of this structure.
        name: Name of the key or sealed object.
        policy: what must hold, in the order in which it is asserted.
    """

    format: int = FORMAT
    name: Name
    policy: tuple[Assertion, ...]


class SignedPolicy(_Strict, frozen=True, kw_only=True):
    """``….signed-policy.json``: a policy that an operator approved for all objects that say so (`PolicyAuthorize`).

    Attributes:
        format: version of this structure.
        signer: Name of the operator's key.
        policy_ref: for what it is meant.
        version: grows with each policy that takes the place of another; what the counter is held against.
        description: for people.
        policy: what must hold.
        digest: approvedPolicy: the policyDigest after ``policy``.
        signature: TPMT_SIGNATURE over SHA-256(approvedPolicy || policyRef).
    """

    format: int = FORMAT
    signer: Name
    policy_ref: Hex
    version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    description: Text
    policy: tuple[Assertion, ...]
    digest: Digest
    signature: Hex


Document = TypeVar("Document", PolicyDocument, SignedPolicy)


def pcr_digest(values: Sequence[bytes]) -> bytes:
    """PcrDigest of a policy with SHA-256: over the values in the order of their numbers (part 1, 17.5)."""
    return hashlib.sha256(b"".join(values)).digest()


def parse_policy(data: bytes, name: str = "the policy") -> PolicyDocument:
    """The policy in ``data``; ``name`` says where it came from, for the errors.

    It is not verified that it leads to any object's authPolicy: see `tpm_mtls.policy.digest`.

    Raises:
        PolicyError: malformed, oversized, of another format, or assertions in an order that no TPM accepts.
    """
    document = _parse(data, PolicyDocument, name)
    check_assertions(document.policy, name)
    return document


def parse_signed_policy(data: bytes, name: str = "the signed policy") -> SignedPolicy:
    """The signed policy in ``data``; ``name`` says where it came from, for the errors.

    Neither digest nor signature are verified: see `tpm_mtls.policy.signing`.

    Raises:
        PolicyError: malformed, oversized, of another format, or with assertions that are not signed for; or it is the
            record of a state that nobody has signed yet, or a key's own policy.
    """
    _check_kind(data, name)
    document = _parse(data, SignedPolicy, name)
    check_assertions(document.policy, name, signed=True)
    check_version(document.policy, document.version, name)
    return document


def encode(document: PolicyDocument | SignedPolicy) -> bytes:
    """The file for ``document``."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def each_assertion(policy: Sequence[Assertion]) -> Iterator[Assertion]:
    """All assertions of ``policy``, those in branches too."""
    for assertion in policy:
        yield assertion
        if isinstance(assertion, PolicyOr):
            for branch in assertion.branches:
                yield from each_assertion(branch)


def check_version(policy: Sequence[Assertion], version: int, name: str) -> None:
    """Checks that a counter in ``policy``, which is signed as ``version``, is held against just that.

    Raises:
        PolicyError: it is not.
    """
    if any(isinstance(each, PolicyNv) and each.version != version for each in each_assertion(policy)):
        raise _damaged(name, f"it is version {version}, but holds the counter against another one")


def check_assertions(policy: Sequence[Assertion], name: str, *, signed: bool = False, depth: int = 0) -> None:
    """Checks what the structure alone does not say.

    1. There is at least one assertion.
    2. or and authorize come first: they replace what was asserted before.
    3. What is signed for are PCRs and the counter.
    4. The PCRs are numbered rightly, and their digest is that of their values.

    Raises:
        PolicyError: a check failed.
    """
    if not policy:
        raise _damaged(name, "it asserts nothing")  # 1
    for position, assertion in enumerate(policy):
        if isinstance(assertion, PolicyOr | PolicyAuthorize) and position > 0:
            raise _damaged(name, "what comes before an or, or an authorize, would not count")  # 2
        if signed and isinstance(assertion, PolicyAuthorize | PolicyAuthValue):
            raise _damaged(name, "a signed policy is about PCRs and the counter only")  # 3
        if isinstance(assertion, PolicyPcr):
            _check_pcr(assertion, name)  # 4
        if isinstance(assertion, PolicyOr):
            if len(assertion.branches) not in BRANCHES or depth == _DEPTH:
                raise _damaged(name, "an or has 2 to 8 branches, and is at most two levels deep")
            for branch in assertion.branches:
                check_assertions(branch, name, signed=signed, depth=depth + 1)


def _check_pcr(assertion: PolicyPcr, name: str) -> None:
    size = BANKS.get(assertion.bank)
    if size is None:
        raise _damaged(name, f"the PCR bank {assertion.bank[:20]!r} is unknown")
    in_order = list(assertion.pcrs) == sorted(set(assertion.pcrs)) and set(assertion.pcrs) <= set(PCRS)
    if not assertion.pcrs or not in_order or assertion.values.keys() != set(assertion.pcrs):
        raise _damaged(name, "its PCRs are not numbered rightly")
    values = [bytes.fromhex(assertion.values[pcr]) for pcr in assertion.pcrs]
    if any(len(value) != size for value in values) or pcr_digest(values).hex() != assertion.digest:
        raise _damaged(name, "its PCR values and their digest contradict each other")


def _parse(data: bytes, structure: type[Document], name: str) -> Document:
    if len(data) > LIMIT:
        raise _damaged(name, f"larger than {LIMIT} bytes")
    try:
        document = msgspec.json.decode(data, type=structure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = str(error)
        raise _damaged(name, text[:1].lower() + text[1:]) from error
    if document.format != FORMAT:
        raise PolicyError(
            f"{name} has format {document.format}, expected {FORMAT}", hint="use the tpm-mtls that made it"
        )
    return document


class _Kind(msgspec.Struct, frozen=True):
    """Which fields a file has that tell what it is."""

    pcrs: object = None
    signature: object = None
    name: object = None


def _check_kind(data: bytes, name: str) -> None:
    """Tells what ``data`` is, where it is another of our files than a signed policy."""
    try:
        kind = msgspec.json.decode(data[:LIMIT], type=_Kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # `_parse` says it
    if kind.signature is not None:
        return
    if kind.pcrs is not None:
        raise PolicyError(
            f"{name} is a record of PCR values, which nobody has signed yet",
            hint=f"sign it first: tpm-mtls policy sign --signer OPERATOR.key.pem --pcr-values {shlex.quote(name)} "
            "--version N --out new.signed-policy.json; then: tpm-mtls policy install new.signed-policy.json",
        )
    if kind.name is not None:
        raise PolicyError(
            f"{name} is a key's own policy, not one that an operator signed",
            hint=f"see what it says: tpm-mtls policy show {shlex.quote(name)}",
        )


def _damaged(name: str, what: str) -> PolicyError:
    return PolicyError(f"{name} is no usable policy: {what}", hint="copy the file again, or have it made again")
