"""The files that say how a key's policy is satisfied; `tpm_mtls.policy` writes them.

JSON in UTF-8, hexadecimal digits in lower case, at most 64 KiB. ``<key Name>.policy.json``::

    {"format": 1, "name": "000b…", "policy": [ASSERTION, …]}

An assertion is one of::

    {"type": "pcr", "bank": "sha256", "pcrs": [0, 7], "digest": "…", "values": {"0": "…", "7": "…"}, "recorded": "…"}
    {"type": "auth-value"}
    {"type": "nv", "index": "0x01500100", "name": "…", "operation": "unsigned-le", "operand": "…"}
    {"type": "or", "branches": [[ASSERTION, …], …]}
    {"type": "authorize", "signer": {"public": "…", "name": "…"}, "policy_ref": "…"}

``or`` (2 to 8 branches) and ``authorize`` replace what came before, so they come first in their list. ``values`` and
``recorded`` are for people, and may be absent. ``*.signed-policy.json``, what the operator approved::

    {"format": 1, "signer": "000b…", "policy_ref": "…", "version": 5, "description": "…", "policy": [ASSERTION, …],
     "digest": "…", "signature": "…"}

holds no ``authorize``. Nothing here is trusted: the TPM alone decides, and a wrong file only makes it refuse.
"""

from __future__ import annotations

from tpm_mtls_relay.policies.fields import (
    PolicyFileError,
    bytes_of,
    document,
    elements_of,
    fields_of,
    integer_of,
    text_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.policies.fields import JsonObject

NESTING_LIMIT = 4
"""An ``or`` within an ``or`` …; two levels make 64 states."""

LIST_LIMIT = 16
"""Assertions in a list."""

PCR_LIMIT = 24
"""PCRs 0 to 23: PC Client Platform TPM Profile 1.05, 4.6."""

BANKS = {
    "sha1": (0x0004, 20),
    "sha256": (0x000B, 32),
    "sha384": (0x000C, 48),
    "sha512": (0x000D, 64),
    "sm3_256": (0x0012, 32),
    "sha3_256": (0x0027, 32),
    "sha3_384": (0x0028, 48),
    "sha3_512": (0x0029, 64),
}
"""TPM_ALG_ID and bytes of a PCR; TCG Algorithm Registry 1.34, table 3."""

NAME_ALGORITHMS = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""Of keys and NV indices; their digests make Names and policies."""

_NV_INDICES = range(0x01000000, 0x02000000)
_POLICY_REF_LIMIT = 64
_PUBLIC_LIMIT = 1024
_BRANCHES = range(2, 9)  # TPM2_PolicyOR takes 2 to 8: TPM 2.0 Library part 3 rev 1.59, 23.6.1


class Pcr:
    """TPM2_PolicyPCR: PCRs ``pcrs`` of ``bank``, whose ``digest`` is of their values in ascending order."""

    __slots__ = ("bank", "digest", "pcrs")

    def __init__(self, bank: str, pcrs: tuple[int, ...], digest: bytes) -> None:
        self.bank = bank
        self.pcrs = pcrs
        self.digest = digest


class AuthValue:
    """TPM2_PolicyAuthValue: whoever uses the key proves its authorization value."""

    __slots__ = ()


class Nv:
    """TPM2_PolicyNV: the counter at ``index``, whose Name is ``name``, is at most ``operand`` (8 bytes)."""

    __slots__ = ("index", "name", "operand")

    def __init__(self, index: int, name: bytes, operand: bytes) -> None:
        self.index = index
        self.name = name
        self.operand = operand


class Or:
    """TPM2_PolicyOR: one of ``branches`` holds."""

    __slots__ = ("branches",)

    def __init__(self, branches: tuple[tuple[Assertion, ...], ...]) -> None:
        self.branches = branches


class Authorize:
    """TPM2_PolicyAuthorize: a policy holds that the key ``signer_name`` (TPMT_PUBLIC ``signer``) has signed."""

    __slots__ = ("policy_ref", "signer", "signer_name")

    def __init__(self, signer: bytes, signer_name: bytes, policy_ref: bytes) -> None:
        self.signer = signer
        self.signer_name = signer_name
        self.policy_ref = policy_ref


Assertion = Pcr | AuthValue | Nv | Or | Authorize


class SignedPolicy:
    """A policy that an operator approved.

    Attributes:
        signer_name: Name of the key that ``signature`` (TPMT_SIGNATURE) is of.
        policy_ref: what kind of policy it is, to its signer.
        version: the highest value of the rollback counter with which it is meant to hold.
        policy: its assertions.
        digest: approvedPolicy, the digest of ``policy``.
    """

    __slots__ = ("digest", "policy", "policy_ref", "signature", "signer_name", "version")

    def __init__(self, fields: JsonObject) -> None:
        self.signer_name = _name(fields["signer"])
        self.policy_ref = bytes_of(fields["policy_ref"], limit=_POLICY_REF_LIMIT)
        self.version = integer_of(fields["version"], limit=1 << 64)
        self.policy = _assertions(fields["policy"], nesting=0, signed=True)
        self.digest = bytes_of(fields["digest"], limit=_POLICY_REF_LIMIT)
        self.signature = bytes_of(fields["signature"], limit=_PUBLIC_LIMIT)


def parse_key_policy(data: bytes) -> tuple[bytes, tuple[Assertion, ...]]:
    """The key's Name and the assertions in a ``.policy.json`` file.

    Raises:
        PolicyFileError: it is none.
    """
    fields = document(data, ("format", "name", "policy"))
    return _name(fields["name"]), _assertions(fields["policy"], nesting=0, signed=False)


def parse_signed_policy(data: bytes) -> SignedPolicy:
    """The policy in a ``.signed-policy.json`` file; its signature is for the TPM to verify.

    Raises:
        PolicyFileError: it is none.
    """
    required = ("format", "signer", "policy_ref", "version", "policy", "digest", "signature")
    fields = document(data, required, ("description",))
    text_of(fields.get("description", ""))
    return SignedPolicy(fields)


def _name(value: object) -> bytes:
    name = bytes_of(value, limit=66)
    algorithm = NAME_ALGORITHMS.get(int.from_bytes(name[:2], "big"))
    if algorithm is None or len(name) != 2 + BANKS[algorithm][1]:
        raise PolicyFileError("something is no Name with a digest that this version knows")
    return name


def _assertions(value: object, *, nesting: int, signed: bool) -> tuple[Assertion, ...]:
    elements = elements_of(value)
    if len(elements) > LIST_LIMIT or nesting > NESTING_LIMIT:
        raise PolicyFileError("too many assertions, or too deep")
    assertions = tuple(_assertion(element, nesting=nesting, signed=signed) for element in elements)
    if any(isinstance(assertion, Or | Authorize) for assertion in assertions[1:]):
        raise PolicyFileError("or and authorize come first in their list")
    return assertions


def _assertion(value: object, *, nesting: int, signed: bool) -> Assertion:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "or":
        branches = elements_of(fields_of(value, ("type", "branches"))["branches"])
        if len(branches) not in _BRANCHES:
            raise PolicyFileError(f"{len(branches)} branches")
        return Or(tuple(_assertions(branch, nesting=nesting + 1, signed=signed) for branch in branches))
    if kind == "authorize" and signed:
        raise PolicyFileError("a signed policy that asks for another one")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise PolicyFileError("an assertion of unknown type")
    return reader(value)


def _pcr(value: object) -> Pcr:
    fields = fields_of(value, ("type", "bank", "pcrs", "digest"), ("values", "recorded"))
    bank = text_of(fields["bank"])
    if bank not in BANKS:
        raise PolicyFileError(f"bank {bank[:20]} is unknown")
    pcrs = tuple(integer_of(pcr, limit=PCR_LIMIT) for pcr in elements_of(fields["pcrs"]))
    if list(pcrs) != sorted(set(pcrs)):
        raise PolicyFileError("the PCRs do not ascend")
    if "values" in fields:
        values = fields_of(fields["values"], tuple(str(pcr) for pcr in pcrs))
        if any(len(bytes_of(each, limit=64)) != BANKS[bank][1] for each in values.values()):
            raise PolicyFileError("a PCR's value has not its bank's size")
    text_of(fields.get("recorded", ""))
    return Pcr(bank, pcrs, bytes_of(fields["digest"], limit=64))


def _auth_value(value: object) -> AuthValue:
    fields_of(value, ("type",))
    return AuthValue()


def _nv(value: object) -> Nv:
    fields = fields_of(value, ("type", "index", "name", "operation", "operand"))
    index = text_of(fields["index"])
    number = int.from_bytes(bytes_of(index.removeprefix("0x"), limit=4), "big")
    if index != f"0x{number:08x}" or number not in _NV_INDICES:
        raise PolicyFileError(f"{index[:20]} is no NV index")
    operand = bytes_of(fields["operand"], limit=8)
    if fields["operation"] != "unsigned-le" or len(operand) != 8:  # noqa: PLR2004 - bytes of a counter
        raise PolicyFileError("a comparison that this version does not know")
    return Nv(number, _name(fields["name"]), operand)


def _authorize(value: object) -> Authorize:
    fields = fields_of(value, ("type", "signer", "policy_ref"))
    signer = fields_of(fields["signer"], ("public", "name"))
    public = bytes_of(signer["public"], limit=_PUBLIC_LIMIT)
    return Authorize(public, _name(signer["name"]), bytes_of(fields["policy_ref"], limit=_POLICY_REF_LIMIT))


_READERS: dict[str, Callable[[object], Assertion]] = {
    "pcr": _pcr,
    "auth-value": _auth_value,
    "nv": _nv,
    "authorize": _authorize,
}
