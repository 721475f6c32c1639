"""TPM data without a TPM: public areas, Names, and key files in the ``TSS2 PRIVATE KEY`` form.

Everything here is pure: bytes in, frozen values out. Nothing sends a command. Structures are parsed by tpm2-pytss
(libtss2's unmarshalling), which nobody else but `tpm_mtls.tpm` imports.
"""

from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.structures.public_area import Attribute, PublicArea, parse_public_area, qualified_name
from tpm_mtls.structures.tss2_key import Tss2Key, parse_tss2_pem

__all__ = [
    "Attribute",
    "KeyAlgorithm",
    "PublicArea",
    "Tss2Key",
    "parse_public_area",
    "parse_tss2_pem",
    "qualified_name",
]
