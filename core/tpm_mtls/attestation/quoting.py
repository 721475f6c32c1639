"""A quote and the PCR values that belong to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.messages import QuoteEvidence
from tpm_mtls.attestation.quote_checks import BANK, PCR_CHECK, SENT_PCRS, SIGNED_PCRS, VerifiedQuote, verify_quote
from tpm_mtls.errors import EvidenceRefusedError, StateError

if TYPE_CHECKING:
    from tpm_mtls.tpm import LoadedKey, Tpm

_ATTEMPTS: Final = 3


def quote_pcrs(
    tpm: Tpm, key: LoadedKey, nonce: bytes, *, certificate: bytes | None = None
) -> tuple[QuoteEvidence, VerifiedQuote]:
    """A quote by ``key`` with the values of its PCRs, and what it says (four commands). Checks 3 to 6 passed.

    One command cannot give both, and the kernel extends PCR 10 whenever IMA measures a file: now and then the two do
    not meet. The TPM's counter tells it while the PCRs are read, or check 6 afterwards; then both are asked for anew.

    Args:
        tpm: the open TPM.
        key: the attestation key, loaded.
        nonce: 12 to 32 bytes.
        certificate: the key's certificate (DER), if it has one.

    Raises:
        EvidenceRefusedError: a backend would refuse the quote: something between here and the TPM lies.
        AlgorithmUnsupportedError: the TPM keeps no PCR bank sha256.
        StateError: the PCRs and the quote of them do not meet.
    """
    last: EvidenceRefusedError | StateError | None = None
    for _ in range(_ATTEMPTS):
        quotation = tpm.attestation.quote(key, nonce, {BANK: SIGNED_PCRS})
        try:
            values = tpm.pcrs.read(BANK, SENT_PCRS)
            evidence = QuoteEvidence(
                nonce=nonce,
                attest=quotation.attest,
                signature=quotation.signature,
                attestation_key=key.public.data,
                certificate=certificate,
                pcrs={BANK: {pcr: value.hex() for pcr, value in values.items()}},
            )
            return evidence, verify_quote(evidence, nonce, key.public)
        except StateError as error:
            last = error
        except EvidenceRefusedError as error:
            if error.check != PCR_CHECK:
                raise
            last = error
    raise StateError(
        f"{_ATTEMPTS} quotes did not fit the PCR values read with them: {last}",
        hint="what extends PCRs all the time? if nothing does, something between here and the TPM lies: which --tcti?",
    ) from last
