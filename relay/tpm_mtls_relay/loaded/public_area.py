"""A key's public area (TPMT_PUBLIC, TPM 2.0 Library part 2 rev 1.59, table 200): what the relay must know of it."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages.reader import Reader

RSA = 0x0001
KEYED_HASH = 0x0008
ECC = 0x0023
SYMMETRIC = 0x0025

_NULL = 0x0010

USER_WITH_AUTH = 1 << 6
ADMIN_WITH_POLICY = 1 << 7
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18

_DIGEST_SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32, 0x0027: 32, 0x0028: 48, 0x0029: 64}


class PublicArea:
    """The facts of a public area.

    Attributes:
        public: the TPMT_PUBLIC itself.
        name: the Name that the TPM says it has; empty where it has not said it.
        type: TPM_ALG_ID, for instance `RSA`.
        name_algorithm: TPM_ALG_ID of the hash function of Name and policy.
        attributes: TPMA_OBJECT.
        policy: authPolicy; empty without one.
    """

    __slots__ = ("attributes", "name", "name_algorithm", "policy", "public", "type")

    def __init__(self, public: bytes, name: bytes = b"") -> None:
        """Reads ``public``.

        Raises:
            UnreadableError: it is no public area.
        """
        reader = Reader(public)
        self.public = public
        self.name = name
        self.type = reader.number(2)
        self.name_algorithm = reader.number(2)
        self.attributes = reader.number(4)
        self.policy = reader.sized()
        if self.type not in {RSA, KEYED_HASH, ECC, SYMMETRIC}:
            raise UnreadableError(f"no object's type: {self.type:#x}")
        if self.policy and len(self.policy) != _DIGEST_SIZES.get(self.name_algorithm):
            raise UnreadableError("the policy is no digest of the Name's algorithm")

    @property
    def needs_policy(self) -> bool:
        """Whether only its policy opens it for use: a policy, and no userWithAuth."""
        return bool(self.policy) and not self.attributes & USER_WITH_AUTH

    @property
    def is_restricted(self) -> bool:
        """Whether it signs only digests that the TPM made itself."""
        return bool(self.attributes & RESTRICTED)

    @property
    def signs(self) -> bool:
        """Whether it is a signing key."""
        return bool(self.attributes & SIGN)


def template(public: bytes) -> bytes:
    """What comes before ``unique``, the part of a new object's public area that the TPM itself chooses.

    Empty for kinds of objects other than RSA and ECC keys.

    Raises:
        UnreadableError: it is no public area.
    """
    reader = Reader(public)
    kind = reader.number(2)
    reader.take(6)  # nameAlg, attributes
    reader.sized()  # authPolicy
    if kind == RSA:  # TPMS_RSA_PARMS: part 2, table 194
        _skip_algorithm(reader, 4)
        _skip_algorithm(reader, 2)
        reader.take(6)
    elif kind == ECC:  # TPMS_ECC_PARMS: part 2, table 195
        _skip_algorithm(reader, 4)
        _skip_algorithm(reader, 2)
        reader.take(2)
        _skip_algorithm(reader, 2)
    else:
        return b""
    return public[: reader.offset]


def _skip_algorithm(reader: Reader, details: int) -> None:
    if reader.number(2) != _NULL:
        reader.take(details)
