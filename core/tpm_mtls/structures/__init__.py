"""TPM data without a TPM: public areas, Names, key files, endorsement keys, credentials, attestations, signatures.

Everything here is pure: bytes in, frozen values out. Nothing sends a command. Structures are parsed by tpm2-pytss
(libtss2's unmarshalling), which nobody else but `tpm_mtls.tpm` imports.
"""

from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.structures.attestation import Attest, AttestType, Certified, Clock, Quoted, parse_attest
from tpm_mtls.structures.credential import check_credential_key, make_credential
from tpm_mtls.structures.endorsement import (
    EkTemplate,
    check_ek_public,
    ek_hash,
    ek_public,
    ek_public_from_certificate,
    ek_template,
    find_ek_template,
)
from tpm_mtls.structures.nv_public import NvAttribute, NvPublic
from tpm_mtls.structures.public_area import Attribute, PublicArea, parse_public_area, qualified_name
from tpm_mtls.structures.sealed import (
    SEALED_LIMIT,
    SealedObject,
    parse_sealed_pem,
    read_sealed_files,
    sealed_part,
)
from tpm_mtls.structures.signature import Signature, parse_signature, verify_signature
from tpm_mtls.structures.tss2_key import Tss2Key, parse_tss2_pem

__all__ = [
    "SEALED_LIMIT",
    "Attest",
    "AttestType",
    "Attribute",
    "Certified",
    "Clock",
    "EkTemplate",
    "KeyAlgorithm",
    "NvAttribute",
    "NvPublic",
    "PublicArea",
    "Quoted",
    "SealedObject",
    "Signature",
    "Tss2Key",
    "check_credential_key",
    "check_ek_public",
    "ek_hash",
    "ek_public",
    "ek_public_from_certificate",
    "ek_template",
    "find_ek_template",
    "make_credential",
    "parse_attest",
    "parse_public_area",
    "parse_sealed_pem",
    "parse_signature",
    "parse_tss2_pem",
    "qualified_name",
    "read_sealed_files",
    "sealed_part",
    "verify_signature",
]
