"""A quote as the files that ``tpm2_quote`` writes and ``tpm2_checkquote`` takes."""

from __future__ import annotations

import shlex
import struct
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tpm_mtls.attestation.quote_checks import SIGNED_PCRS
from tpm_mtls.files import make_folder, refuse_existing, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tpm_mtls.tpm_tools.quoting import SampleQuote

_KEY, _ATTEST, _SIGNATURE, _PCRS = "attestation-key.pem", "quote.attest", "quote.signature", "quote.pcrs"

# TPML_PCR_SELECTION and TPML_DIGEST of libtss2 as they lie in memory, little-endian: lib/pcr.c of tpm2-tools. The other
# form, values alone, its version 5.4 refuses for more than eight PCRs
_SELECTION: Final = struct.Struct("<HB4sx")
_SELECTIONS: Final = 16
_DIGEST: Final = struct.Struct("<H64s")
_DIGESTS: Final = 8
_COUNT: Final = struct.Struct("<I")
_SHA256: Final = 0x000B


def check_absent(folder: Path) -> None:
    """Checks that ``folder`` has no quote yet.

    Raises:
        StateError: it has.
    """
    for name in (_KEY, _ATTEST, _SIGNATURE, _PCRS):
        refuse_existing(folder / name)


def write_quote(quote: SampleQuote, folder: Path) -> str:
    """Writes the quote into ``folder``; the command with which tpm2-tools check it.

    Raises:
        StateError: one of the files exists.
        StorageError: one cannot be written.
    """
    public = load_der_public_key(quote.key.spki or b"").public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    make_folder(folder)
    write_atomic(folder / _KEY, public, replace=False)
    write_atomic(folder / _ATTEST, quote.evidence.attest, replace=False)
    write_atomic(folder / _SIGNATURE, quote.evidence.signature, replace=False)
    write_atomic(folder / _PCRS, _pcr_file(quote.verified.values), replace=False)
    key, attest, signature, pcrs = (shlex.quote(str(folder / name)) for name in (_KEY, _ATTEST, _SIGNATURE, _PCRS))
    return f"tpm2_checkquote -u {key} -m {attest} -s {signature} -f {pcrs} -q {quote.evidence.nonce.hex()} -g sha256"


def _pcr_file(values: Mapping[int, bytes]) -> bytes:
    bitmap = sum(1 << pcr for pcr in SIGNED_PCRS).to_bytes(4, "little")
    selections = _SELECTION.pack(_SHA256, 3, bitmap).ljust(_SELECTIONS * _SELECTION.size, b"\0")
    digests = [_DIGEST.pack(len(values[pcr]), values[pcr]) for pcr in SIGNED_PCRS]
    lists = [digests[at : at + _DIGESTS] for at in range(0, len(digests), _DIGESTS)]
    packed = [_COUNT.pack(len(each)) + b"".join(each).ljust(_DIGESTS * _DIGEST.size, b"\0") for each in lists]
    return _COUNT.pack(1) + selections + _COUNT.pack(len(lists)) + b"".join(packed)
