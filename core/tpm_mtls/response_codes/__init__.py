"""TPM and TSS response codes in words, and as errors: one table for `tpm_error`, ``tpm-mtls explain`` and trace.

Layout of a code: TPM 2.0 Library part 2 rev 1.59, 6.6 (format zero and format one), and TSS 2.0 Overview rev 1.0,
table 7 for the layer in bits 16 to 23. Both the ESAPI (`tpm_mtls.tpm`) and OpenSSL's provider (`tpm_mtls.openssl`)
report these numbers, so this table is the one place that says what they mean. What the relay answers by itself is in
`tpm_mtls.response_codes.relay`.
"""

from tpm_mtls.response_codes.as_errors import refusal_class, tpm_error
from tpm_mtls.response_codes.lookup import LAYERS, Explained, Layer, all_names, describe, explain, named
from tpm_mtls.response_codes.meaning import Meaning, naming_key

__all__ = [
    "LAYERS",
    "Explained",
    "Layer",
    "Meaning",
    "all_names",
    "describe",
    "explain",
    "named",
    "naming_key",
    "refusal_class",
    "tpm_error",
]
