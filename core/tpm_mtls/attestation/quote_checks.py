"""The checks of a quote that both sides make: the backend to decide, the device before it sends one.

The numbers are those of attestation's nine checks, in code, errors, registry and messages alike:

1. nonce                the backend's: given to this device, fresh, used once
2. attestation key      the backend's: whose certificate, or enrollment record; `tpm_mtls.evidence_checks`
3. signature            `check_signature`
4. a TPM's quote        `check_structure`
5. extraData            `check_nonce`
6. PCR values           `check_pcrs`
7. clock                the backend's
8. logs                 the backend's; `tpm_mtls.event_log`, `tpm_mtls.ima`
9. policy               the backend's

Everything here is pure. Each function makes its own check only: a quote is worth something when all of them passed.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.messages import Bank, pcr_values
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.evidence_checks import numbered
from tpm_mtls.policy.document import BANKS, PCRS
from tpm_mtls.structures import Quoted, parse_attest, parse_signature, verify_signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls.structures import Attest, Clock, PublicArea

BANK: Final[Bank] = "sha256"
"""The bank whose PCRs every quote must hold."""

SIGNED_PCRS: Final = range(16)
"""PCRs that every quote must hold; the others are for debugging and dynamic launches."""

SENT_PCRS: Final = PCRS
"""PCRs whose values go with a quote, signed or not."""

PCR_CHECK: Final = 6
"""The number of `check_pcrs`: the one that fails where a PCR was extended between quote and reading."""

_HINT: Final = "make a new quote: tpm-mtls agent check"


@dataclass(frozen=True)
class VerifiedQuote:
    """A quote that passed checks 3 to 6.

    Attributes:
        attest: what the TPM signed.
        pcrs: the signed PCR values, by bank and number: `SIGNED_PCRS` of `BANK`, and whatever else was selected.
    """

    attest: Attest
    pcrs: Mapping[str, Mapping[int, bytes]]

    @property
    def clock(self) -> Clock:
        """The TPM's clock when it quoted; its counters are obfuscated (`tpm_mtls.structures.Attest`)."""
        return self.attest.clock

    @property
    def values(self) -> Mapping[int, bytes]:
        """The signed PCR values of `BANK`."""
        return self.pcrs[BANK]


def verify_quote(evidence: QuoteEvidence, nonce: bytes, key: PublicArea) -> VerifiedQuote:
    """Makes checks 3 to 6 of ``evidence``.

    3. ``key`` signed it.
    4. It is a quote that a TPM wrote.
    5. It answers ``nonce``.
    6. The PCR values that came with it are those that were signed, PCRs 0 to 15 of sha256 among them.

    The caller must have made checks 1 and 2: that it gave ``nonce`` to this device, and that ``key`` is an attestation
    key of this device's TPM.

    Args:
        evidence: from the device.
        nonce: which the backend gave.
        key: the attestation key.

    Raises:
        EvidenceRefusedError: check 3, 4, 5 or 6.
    """
    check_signature(evidence.attest, evidence.signature, key)
    attest, quoted = check_structure(evidence.attest)
    check_nonce(attest, nonce)
    hash_algorithm = parse_signature(evidence.signature, key).hash
    return VerifiedQuote(attest, check_pcrs(quoted, hash_algorithm, pcr_values(evidence)))


def check_signature(attest: bytes, signature: bytes, key: PublicArea) -> None:
    """Check 3: ``key`` signed ``attest`` (`tpm_mtls.structures.verify_signature`).

    Raises:
        EvidenceRefusedError: check 3.
    """
    with numbered(3):
        verify_signature(attest, signature, key)


def check_structure(attest: bytes) -> tuple[Attest, Quoted]:
    """Check 4: ``attest`` is what TPM2_Quote makes, by its magic, its type and every size in it (`parse_attest`).

    Raises:
        EvidenceRefusedError: check 4.
    """
    with numbered(4):
        parsed = parse_attest(attest)
    if not isinstance(parsed.attested, Quoted):
        raise _refused(4, "the attestation is no quote: it certifies a key")
    return parsed, parsed.attested


def check_nonce(attest: Attest, nonce: bytes) -> None:
    """Check 5: ``attest`` answers ``nonce``. Compared in constant time.

    Raises:
        EvidenceRefusedError: check 5.
    """
    if not hmac.compare_digest(attest.extra_data, nonce):
        raise _refused(5, "the quote answers another nonce")


def check_pcrs(
    quoted: Quoted, hash_algorithm: str, values: Mapping[str, Mapping[int, bytes]]
) -> dict[str, dict[int, bytes]]:
    """Check 6: ``values`` are those of the quoted PCRs, and these are enough.

    1. The selection holds `SIGNED_PCRS` of `BANK`.
    2. ``values`` are what was quoted (`quoted_values`).

    Args:
        quoted: what the TPM signed.
        hash_algorithm: of the signature, such as ``sha256``.
        values: by bank and number.

    Returns:
        The signed ones of ``values``.

    Raises:
        EvidenceRefusedError: check 6.
    """
    selected = {pcr for bank, pcrs in quoted.selection if bank == BANK for pcr in pcrs}
    if missing := sorted(set(SIGNED_PCRS) - selected):  # 1
        raise _refused(6, f"the quote does not hold PCR {_list(missing)} of the bank {BANK}")
    return quoted_values(quoted, hash_algorithm, values)  # 2


def quoted_values(
    quoted: Quoted, hash_algorithm: str, values: Mapping[str, Mapping[int, bytes]]
) -> dict[str, dict[int, bytes]]:
    """The second half of check 6: those of ``values`` that were quoted, whichever PCRs these are.

    1. All values have the size of their bank, and their numbers are those of PCRs.
    2. There is a value for each selected PCR.
    3. Their digest in the selection's order, with the hash of the signature (part 3, 18.4), is the quote's. Compared in
       constant time.

    Raises:
        EvidenceRefusedError: check 6.
    """
    _check_sizes(values)  # 1
    signed: dict[str, dict[int, bytes]] = {}
    digest = hashlib.new(hash_algorithm)
    for bank, pcrs in quoted.selection:
        for pcr in pcrs:
            value = values.get(bank, {}).get(pcr)
            if value is None:  # 2
                raise _refused(6, f"the value of PCR {pcr} of the bank {bank} was quoted, but not sent")
            signed.setdefault(bank, {})[pcr] = value
            digest.update(value)
    if not hmac.compare_digest(digest.digest(), quoted.digest):  # 3
        raise _refused(6, "the PCR values are not those that were quoted")
    return signed


def _check_sizes(values: Mapping[str, Mapping[int, bytes]]) -> None:
    for bank, found in values.items():
        for pcr, value in found.items():
            if pcr not in PCRS or len(value) != BANKS.get(bank):
                raise _refused(6, f"no PCR {pcr} of a bank {bank} has a value of {len(value)} bytes")


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _refused(check: int, message: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint=_HINT, check=check)
