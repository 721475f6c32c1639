"""The public half of a key outside the TPM, as TPM2_LoadExternal takes it: to verify signatures with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.types import TPM2B_PUBLIC, TPMA_OBJECT

from tpm_mtls.structures.public_area import Attribute, PublicArea, parse_public_area

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_ATTRIBUTES = Attribute.USERWITHAUTH | Attribute.SIGN | Attribute.DECRYPT


def external_public(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> PublicArea:
    """The public area of ``key``, with the Name that tpm2_loadexternal gives it.

    nameAlg SHA-256, no scheme of its own, userWithAuth, sign and decrypt; an RSA exponent is written out.
    """
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public = TPM2B_PUBLIC.from_pem(pem, objectAttributes=TPMA_OBJECT(int(_ATTRIBUTES))).publicArea
    if isinstance(key, rsa.RSAPublicKey):
        public.parameters.rsaDetail.exponent = key.public_numbers().e
    else:
        # from_pem drops leading zeros; a TPM refuses such a point, or gives it another Name (part 1, C.8)
        size = (key.key_size + 7) // 8
        point = key.public_numbers()
        public.unique.ecc.x, public.unique.ecc.y = (number.to_bytes(size, "big") for number in (point.x, point.y))
    return parse_public_area(bytes(public.marshal()))
