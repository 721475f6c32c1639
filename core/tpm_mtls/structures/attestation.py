"""What a TPM attests: TPMS_ATTEST, as TPM2_Certify and TPM2_Quote sign it.

TPM 2.0 Library part 2 rev 1.59, 10.12 (attestation structures), 10.11.1 (TPMS_CLOCK_INFO), 10.6.2
(TPMS_PCR_SELECTION). What of it is still to be verified is said at each function.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMS_ATTEST

from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures.algorithms import algorithm_name
from tpm_mtls.structures.reader import Reader

MAGIC: Final = b"\xffTCG"
"""TPM_GENERATED_VALUE: part 2, 6.2. A restricted key signs nothing from outside that begins so."""

ATTEST_LIMIT = 1024
"""Bytes of a TPMS_ATTEST; a quote of sixteen banks with SHA-512 Names everywhere has less than 450."""

_NAME_LIMIT = 66  # TPM2B_NAME: nameAlg and a SHA-512 digest (part 2, 10.5.3)
_EXTRA_LIMIT = 66  # TPM2B_DATA: the size of a TPMT_HA (part 2, 10.4.3)
_DIGEST_LIMIT = 64
_BANKS_LIMIT = 16  # TPM2_NUM_PCR_BANKS of libtss2
_WHAT = "attestation (TPMS_ATTEST)"
_HINT = "that is not what TPM2_Certify or TPM2_Quote gives; make new evidence"
_PCRS_LIMIT = 4  # bytes of a selection: TPM2_PCR_SELECT_MAX of libtss2


class AttestType(enum.IntEnum):
    """TPMI_ST_ATTEST, those that the project knows: part 2, 6.9 and 10.12.10."""

    CERTIFY = 0x8017
    QUOTE = 0x8018


@dataclass(frozen=True)
class Clock:
    """TPMS_CLOCK_INFO.

    Attributes:
        milliseconds: time that the TPM was powered since it was last cleared.
        reset_count: TPM Resets since it was last cleared.
        restart_count: TPM Restarts and Resumes since the last Reset.
        safe: whether no larger value of ``milliseconds`` was ever reported before.
    """

    milliseconds: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True)
class Certified:
    """TPMS_CERTIFY_INFO: that an object with this Name is loaded in the TPM.

    Attributes:
        name: the object's Name.
        qualified_name: its qualified name, which tells its parents.
    """

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True)
class Quoted:
    """TPMS_QUOTE_INFO: that some PCRs had these values.

    Attributes:
        selection: for each bank (``sha256``), in the quote's order, the numbers of the selected PCRs, ascending.
        digest: digest of the selected PCRs' values in that order, with the hash of the signing scheme.
    """

    selection: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes


Attested: TypeAlias = Certified | Quoted


@dataclass(frozen=True)
class Attest:
    """A TPMS_ATTEST. Nobody has verified who signed it.

    Attributes:
        data: its bytes, which the signature covers.
        qualified_signer: qualified name of the key that signed it.
        extra_data: the qualifying data that the caller of the command gave.
        clock: the TPM's clock. With a key of another hierarchy than the endorsement's or the platform's, TPMs obfuscate
            reset and restart count and the firmware version (part 1, 36.7).
        firmware_version: vendor-specific, 64 bits.
        attested: what it says.
    """

    data: bytes
    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int
    attested: Attested

    @property
    def type(self) -> AttestType:
        """Which command made it."""
        return AttestType.CERTIFY if isinstance(self.attested, Certified) else AttestType.QUOTE


def parse_attest(data: bytes) -> Attest:
    """What the TPMS_ATTEST ``data`` says.

    1. All sizes in it are possible and it ends where they say; before libtss2 looks at it.
    2. It begins with TPM_GENERATED_VALUE and is of one of the two types.
    3. libtss2 reads it and writes the same bytes again.

    Not verified: its signature (`verify_signature`), and anything that it says.

    Raises:
        EvidenceError: a step failed.
    """
    _check_outline(data)  # 1, 2
    try:
        attest, used = TPMS_ATTEST.unmarshal(data)
    except TSS2_Exception as error:  # another build of libtss2 may have smaller limits than ours
        raise _malformed() from error
    if used != len(data) or bytes(attest.marshal()) != data:  # 3
        raise _malformed()
    clock = attest.clockInfo
    return Attest(
        data=data,
        qualified_signer=bytes(attest.qualifiedSigner),
        extra_data=bytes(attest.extraData),
        clock=Clock(int(clock.clock), int(clock.resetCount), int(clock.restartCount), bool(clock.safe)),
        firmware_version=int(attest.firmwareVersion),
        attested=_attested(attest),
    )


def _attested(attest: TPMS_ATTEST) -> Attested:
    if int(attest.type) == AttestType.CERTIFY:
        certify = attest.attested.certify
        return Certified(bytes(certify.name), bytes(certify.qualifiedName))
    quote = attest.attested.quote
    selection = tuple(
        (algorithm_name(int(bank.hash)), _numbers(bytes(bank.pcrSelect)[: int(bank.sizeofSelect)]))
        for bank in quote.pcrSelect
    )
    return Quoted(selection, bytes(quote.pcrDigest))


def _numbers(bitmap: bytes) -> tuple[int, ...]:
    """The PCRs in a bitmap, least significant bit of the first byte first: part 2, 10.6.1."""
    bits = int.from_bytes(bitmap, "little")
    return tuple(number for number in range(len(bitmap) * 8) if bits >> number & 1)


def _check_outline(data: bytes) -> None:
    if len(data) > ATTEST_LIMIT:
        raise EvidenceError(f"an attestation of more than {ATTEST_LIMIT} bytes", hint=_HINT)
    reader = Reader(data, _WHAT, hint=_HINT)
    if reader.take(4) != MAGIC:
        raise EvidenceError("the attestation does not come from a TPM (TPM_GENERATED_VALUE is missing)", hint=_HINT)
    kind = reader.number(2)
    if kind not in list(AttestType):
        raise EvidenceError(f"an attestation of type {kind:#06x} is neither a Certify nor a Quote", hint=_HINT)
    reader.sized(_NAME_LIMIT)
    reader.sized(_EXTRA_LIMIT)
    reader.take(8 + 4 + 4)
    if reader.number(1) > 1:  # TPMI_YES_NO: part 2, 9.2
        raise _malformed()
    reader.take(8)
    if kind == AttestType.CERTIFY:
        reader.sized(_NAME_LIMIT)
        reader.sized(_NAME_LIMIT)
    else:
        for _ in range(reader.number(4, at_most=_BANKS_LIMIT)):
            reader.take(2)
            reader.take(reader.number(1, at_most=_PCRS_LIMIT))
        reader.sized(_DIGEST_LIMIT)
    reader.end()


def _malformed() -> EvidenceError:
    return EvidenceError(f"malformed {_WHAT}", hint=_HINT)
