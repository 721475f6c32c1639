"""Wrapping an existing private key for TPM2_Import.

TPM 2.0 Library part 1 rev 1.59, 23.3: the key's sensitive area is encrypted and authenticated (outer wrapper) under a
seed that only the new parent can recover, so the bus between here and the TPM never sees the key in the clear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.types import (
    TPM2B_SENSITIVE,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TPMT_SENSITIVE,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_ID,
    TPMU_SENSITIVE_COMPOSITE,
)
from tpm2_pytss.utils import wrap

from tpm_mtls.tpm.boundary import sized_public
from tpm_mtls.tpm.templates import imported_template

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from tpm_mtls.authorization import Secret
    from tpm_mtls.key_algorithm import KeyAlgorithm
    from tpm_mtls.structures import PublicArea


@dataclass(frozen=True)
class Duplicate:
    """A key, encrypted to one parent; opaque, for `Tpm.import_duplicate`.

    Attributes:
        public: TPM2B_PUBLIC of the key.
        private: TPM2B_PRIVATE, the outer wrapper.
        seed: TPM2B_ENCRYPTED_SECRET, for the parent.
        inner_algorithm: TPMT_SYM_DEF_OBJECT: NULL, there is no inner wrapper.
    """

    public: Any
    private: Any = field(repr=False)
    seed: Any = field(repr=False)
    inner_algorithm: Any


def duplicate_for(
    parent: PublicArea,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    algorithm: KeyAlgorithm,
    authorization: Secret | None,
) -> Duplicate:
    """``key`` (of ``algorithm``) encrypted to the storage key ``parent``, with an authorization value if given."""
    template = TPMT_PUBLIC.unmarshal(imported_template(algorithm, with_authorization=authorization is not None))[0]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        numbers = key.private_numbers()
        point = numbers.public_numbers
        template.unique = TPMU_PUBLIC_ID(
            ecc=TPMS_ECC_POINT(x=point.x.to_bytes(size, "big"), y=point.y.to_bytes(size, "big"))
        )
        sensitive = TPMU_SENSITIVE_COMPOSITE(ecc=numbers.private_value.to_bytes(size, "big"))
    else:
        primes = key.private_numbers()
        template.unique = TPMU_PUBLIC_ID(rsa=primes.public_numbers.n.to_bytes(key.key_size // 8, "big"))
        sensitive = TPMU_SENSITIVE_COMPOSITE(rsa=primes.p.to_bytes(key.key_size // 16, "big"))
    public = sized_public(bytes(template.marshal()))
    area = TPMT_SENSITIVE(
        sensitiveType=template.type, authValue=authorization.value if authorization else b"", sensitive=sensitive
    )
    _, private, seed = wrap(TPMT_PUBLIC.unmarshal(parent.data)[0], public, TPM2B_SENSITIVE(sensitiveArea=area))
    return Duplicate(public, private, seed, TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL))
