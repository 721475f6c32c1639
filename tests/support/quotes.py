"""Quotes for tests: made in software, recorded, and as the files of tpm2-tools."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from support import attestation
from support.attestation import AttestationKey
from support.event_logs import recorded_pcrs
from support.vectors import vector
from tpm_mtls.attestation.messages import QuoteEvidence
from tpm_mtls.structures import PublicArea, parse_public_area

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tpm_mtls.attestation.messages import Bank

Values = dict[str, dict[int, bytes]]

NONCE = bytes(range(32))
SIGNED = {"sha256": range(16)}
RECORDED_NONCE = bytes.fromhex("00112233445566778899aabbccddeeff")
ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}

_BANKS = {number: name for name, number in ALGORITHMS.items()}
_SELECTION = struct.Struct("<HB4sx")  # TPMS_PCR_SELECTION as a compiler lays it out, little-endian
_SELECTIONS = 16
_DIGEST = struct.Struct("<H64s")
_DIGESTS = 8


def some_values(*, count: int = 24) -> Values:
    """A value for each PCR of the bank sha256."""
    return {"sha256": {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(count)}}


def bitmap(pcrs: Iterable[int], size: int = 3) -> bytes:
    """A TPMS_PCR_SELECTION's pcrSelect."""
    return sum(1 << pcr for pcr in pcrs).to_bytes(size, "little")


def software_key(curve: ec.EllipticCurve | None = None, scheme: str = "ecdsa-sha256") -> AttestationKey:
    """An attestation key in software."""
    return AttestationKey(ec.generate_private_key(curve or ec.SECP256R1()), scheme)


def made_quote(
    key: AttestationKey,
    values: Mapping[str, Mapping[int, bytes]],
    *,
    nonce: bytes = NONCE,
    selection: Mapping[str, Sequence[int]] = SIGNED,
    digest: bytes | None = None,
    attest: Mapping[str, Any] | None = None,
) -> tuple[bytes, bytes]:
    """TPMS_ATTEST and TPMT_SIGNATURE of a quote of ``values``, by a key in software.

    Args:
        key: it signs.
        values: by bank and PCR.
        nonce: extraData.
        selection: which PCRs are quoted.
        digest: instead of the right one.
        attest: arguments of `support.attestation.attest`.
    """
    if digest is None:
        hasher = hashlib.new(key.scheme.partition("-")[2])
        for bank, pcrs in selection.items():
            for pcr in pcrs:
                hasher.update(values[bank][pcr])
        digest = hasher.digest()
    banks = [(ALGORITHMS[bank], bitmap(pcrs)) for bank, pcrs in selection.items()]
    arguments: dict[str, Any] = {"extra": nonce, "kind": attestation.QUOTE} | dict(attest or {})
    data = attestation.attest(attestation.quoted(*banks, digest=digest), **arguments)
    return data, key.sign_as_tpm(data)


def made_evidence(
    key: AttestationKey, values: Values | None = None, *, nonce: bytes = NONCE, attest: Mapping[str, Any] | None = None
) -> QuoteEvidence:
    """The evidence with `made_quote`."""
    values = values or some_values()
    data, signature = made_quote(key, values, nonce=nonce, attest=attest)
    return evidence_of(data, signature, key.public, values, nonce=nonce)


def evidence_of(
    attest: bytes, signature: bytes, key: PublicArea, values: Mapping[str, Mapping[int, bytes]], *, nonce: bytes = NONCE
) -> QuoteEvidence:
    """The message with these in it."""
    return QuoteEvidence(
        nonce=nonce,
        attest=attest,
        signature=signature,
        attestation_key=key.data,
        pcrs=hexadecimal(values),
    )


def hexadecimal(values: Mapping[str, Mapping[int, bytes]]) -> dict[Bank, dict[int, str]]:
    """PCR values as messages have them."""
    return {cast("Bank", bank): {pcr: value.hex() for pcr, value in of.items()} for bank, of in values.items()}


def area_of_pem(pem: bytes, scheme: str = "ecdsa-sha256") -> PublicArea:
    """The public area of a key that tpm2_createak made, from its PEM."""
    key: Any = load_pem_public_key(pem)
    if isinstance(key, ec.EllipticCurvePublicKey):
        stand_in: Any = _PublicOnly(key)
        return parse_public_area(attestation.public_area(stand_in, scheme))
    scheme_name, _, hash_name = scheme.partition("-")
    details = struct.pack(">HH", {"rsassa": 0x14, "rsapss": 0x16}[scheme_name], ALGORITHMS[hash_name])
    modulus = attestation.sized(key.public_numbers().n.to_bytes(key.key_size // 8, "big"))
    head = struct.pack(">HHIHH", 0x0001, 0x000B, attestation.AK_ATTRIBUTES, 0, 0x0010)
    return parse_public_area(head + details + struct.pack(">HI", key.key_size, 0) + modulus)


@dataclass(frozen=True)
class _PublicOnly:
    """Stands for a private key of P-256 where only its public half is looked at."""

    key: ec.EllipticCurvePublicKey

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self.key.curve


def recorded_quote(name: str) -> QuoteEvidence:
    """The quote of a recorded boot, with its logs."""
    evidence = evidence_of(
        vector(f"eventlog/{name}/quote.msg"),
        vector(f"eventlog/{name}/quote.sig"),
        area_of_pem(vector(f"eventlog/{name}/ak.pub")),
        recorded_pcrs(name, range(24)),
        nonce=RECORDED_NONCE,
    )
    return msgspec.structs.replace(
        evidence,
        event_log=vector(f"eventlog/{name}/binary_bios_measurements"),
        ima_log=vector(f"eventlog/{name}/ima-binary"),
    )


def read_pcrs_file(data: bytes) -> Values:
    """The PCR values in a file that ``tpm2_quote --pcr`` wrote, by bank and number."""
    selected = _selection_of(data)
    digests = data[4 + _SELECTIONS * _SELECTION.size :]
    (lists,) = struct.unpack_from("<I", digests)
    values: list[bytes] = []
    for each in range(lists):
        start = 4 + each * (4 + _DIGESTS * _DIGEST.size)
        (count,) = struct.unpack_from("<I", digests, start)
        for number in range(count):
            size, value = _DIGEST.unpack_from(digests, start + 4 + number * _DIGEST.size)
            values.append(value[:size])
    found: Values = {}
    for (bank, pcr), value in zip(selected, values, strict=True):
        found.setdefault(bank, {})[pcr] = value
    return found


def _selection_of(data: bytes) -> list[tuple[str, int]]:
    (count,) = struct.unpack_from("<I", data)
    selected: list[tuple[str, int]] = []
    for number in range(count):
        bank, size, bits = _SELECTION.unpack_from(data, 4 + number * _SELECTION.size)
        wanted = int.from_bytes(bits[:size], "little")
        selected += [(_BANKS[bank], pcr) for pcr in range(24) if wanted >> pcr & 1]
    return selected


def pcrs_file(values: Mapping[str, Mapping[int, bytes]]) -> bytes:
    """A file of PCR values as ``tpm2_checkquote --pcr`` takes it."""
    selections = b"".join(_SELECTION.pack(ALGORITHMS[bank], 3, bitmap(of)) for bank, of in values.items())
    head = struct.pack("<I", len(values)) + selections.ljust(_SELECTIONS * _SELECTION.size, b"\0")
    digests = [_DIGEST.pack(len(value), value) for of in values.values() for _, value in sorted(of.items())]
    lists = [digests[at : at + _DIGESTS] for at in range(0, len(digests), _DIGESTS)]
    packed = [struct.pack("<I", len(each)) + b"".join(each).ljust(_DIGESTS * _DIGEST.size, b"\0") for each in lists]
    return head + struct.pack("<I", len(lists)) + b"".join(packed)
