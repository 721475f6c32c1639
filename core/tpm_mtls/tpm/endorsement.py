"""The endorsement keys (EK) of an open TPM, and the certificates that its maker put beside them.

TCG EK Credential Profile for TPM Family 2.0, version 2.5: 2.2.1.4 and 2.2.1.5 (NV indices), B.2 to B.4 (templates);
Registry of Reserved TPM 2.0 Handles and Localities 1.1, table 2 (persistent handles).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMS_ECC_POINT, TPMT_PUBLIC, TPMU_PUBLIC_ID

from tpm_mtls.errors import EvidenceError, HandleNotFoundError
from tpm_mtls.structures import EkTemplate, ek_template
from tpm_mtls.tpm.boundary import public_area, sized_public
from tpm_mtls.tpm.values import LoadedKey

if TYPE_CHECKING:
    from tpm_mtls.tpm.keys import Keys
    from tpm_mtls.tpm.nv import NvMemory
    from tpm_mtls.tpm.resources import Resources

CERTIFICATE_LIMIT: Final = 4 * 1024
"""Bytes of an EK certificate; they have 800 to 1,500."""

CHAIN_LIMIT: Final = 16 * 1024
"""Bytes of all chain certificates together."""

_FIRST_CERTIFICATE: Final = 0x01C00002
_CHAIN: Final = range(0x01C00100, 0x01C00200)
_TEMPLATE_LIMIT: Final = 1024
_NONCE_LIMIT: Final = 256
_SEQUENCE: Final = 0x30

_PREFERRED: Final = (
    EkTemplate.ECC_P256,
    EkTemplate.HIGH_ECC_P256,
    EkTemplate.HIGH_ECC_P384,
    EkTemplate.RSA_2048,
    EkTemplate.HIGH_RSA_2048,
)
"""Elliptic curves first: a chip makes such a key in a quarter of a second, an RSA key in many."""

_HANDLES: Final = {
    EkTemplate.RSA_2048: 0x81010001,
    EkTemplate.ECC_P256: 0x81010002,
    EkTemplate.HIGH_RSA_2048: 0x81010012,
    EkTemplate.HIGH_ECC_P256: 0x81010014,
    EkTemplate.HIGH_ECC_P384: 0x81010016,
}


class EndorsementKeys:
    """The endorsement keys of an open TPM; `Tpm.endorsement` is the one to use."""

    def __init__(self, keys: Keys, nv: NvMemory, resources: Resources) -> None:
        self._keys = keys
        self._nv = nv
        self._resources = resources
        self._indices: frozenset[int] | None = None

    @property
    def indices(self) -> frozenset[int]:
        """The NV indices that hold something about endorsement keys (one command, once)."""
        if self._indices is None:
            self._indices = frozenset(self._nv.indices(_FIRST_CERTIFICATE))
        return self._indices

    def certified(self) -> tuple[EkTemplate, ...]:
        """The templates for whose keys there are certificates, the cheapest key first."""
        return tuple(template for template in _PREFERRED if template.certificate_index in self.indices)

    def certificate(self, template: EkTemplate) -> bytes | None:
        """The certificate (DER) of the key from ``template``, none if there is none; three commands for one of 1 KiB.

        Not verified: anything about it.

        Raises:
            EvidenceError: what is in its place is none, or an oversized one.
        """
        if template.certificate_index not in self.indices:
            return None
        data = self._nv.read(template.certificate_index, limit=CERTIFICATE_LIMIT)
        certificates = _split(data)
        if not certificates:
            raise EvidenceError(
                f"there is no EK certificate at NV {template.certificate_index:#010x} but something else",
                hint="the TPM's maker put it there; without it only an allow-list at the CA helps",
            )
        return certificates[0]

    def chain(self) -> tuple[bytes, ...]:
        """The CA certificates (DER) that the maker stored, in its order; mostly none. Nothing of them is verified."""
        data = b""
        for index in sorted(self.indices & frozenset(_CHAIN)):
            data += self._nv.read(index, limit=CHAIN_LIMIT - len(data))
        return _split(data)

    def use(self, template: EkTemplate) -> LoadedKey:
        """The key from ``template``: the persistent one, if its maker or owner left it there, else made again.

        One command for a persistent one; else two, and what the maker's own template and nonce cost to read. A chip
        needs up to a minute for an RSA key.

        Raises:
            AlgorithmUnsupportedError: this TPM does not have the template's algorithm.
            AuthorizationError: the endorsement hierarchy has another authorization value.
            EvidenceError: the maker's template is malformed.
        """
        try:
            key = self._keys.use_persistent(_HANDLES[template])
        except HandleNotFoundError:
            return self._create(template)
        if key.public.is_storage_key and key.public.was_born_inside and key.public.algorithm == template.algorithm:
            return key
        return self._create(template)  # somebody else's: it stays

    def persisted(self) -> frozenset[EkTemplate]:
        """The templates whose handles are in use, by whatever key (one command for each 64 objects)."""
        handles = self._keys.persistent_handles()
        return frozenset(template for template, handle in _HANDLES.items() if handle in handles)

    def persist(self, template: EkTemplate) -> None:
        """Makes the key from ``template`` and keeps it at the handle that the registry has for it.

        Raises:
            HandleOccupiedError: something is there already; it stays.
            AuthorizationError: the endorsement or the owner hierarchy has another authorization value.
            AlgorithmUnsupportedError, EvidenceError: as `use`.
        """
        with self._create(template) as key:
            self._keys.persist(key, _HANDLES[template])

    def _create(self, template: EkTemplate) -> LoadedKey:
        area = self._template(template)
        with self._resources.command("make the endorsement key", option="--endorsement-auth"):
            resource, public, *_ = self._resources.context.create_primary(
                None, sized_public(area), primary_handle=ESYS_TR.ENDORSEMENT
            )
            return LoadedKey(public_area(public), b"", self._resources.register(resource), self._resources)

    def _template(self, template: EkTemplate) -> bytes:
        """The maker's template if there is one, with the maker's nonce if there is one: B.2, 2.2.1.4."""
        area = ek_template(template)
        if template.template_index in self.indices:
            area = self._nv.read(template.template_index, limit=_TEMPLATE_LIMIT)
            _check_template(area, template)
        if template.nonce_index is None or template.nonce_index not in self.indices:
            return area
        return _with_nonce(area, self._nv.read(template.nonce_index, limit=_NONCE_LIMIT), template)


def _check_template(area: bytes, template: EkTemplate) -> None:
    """Checks that ``area`` (a template, whose ``unique`` is no key yet) makes a key of the kind of ``template``."""
    where = f"NV {template.template_index:#010x}"
    hint = "the TPM's maker put it there; it should make the key that the certificate beside it is for"
    try:
        public, used = TPMT_PUBLIC.unmarshal(area)
    except TSS2_Exception as error:
        raise EvidenceError(f"the EK template at {where} is malformed", hint=hint) from error
    if used != len(area) or _kind(public) != _kind(TPMT_PUBLIC.unmarshal(ek_template(template))[0]):
        raise EvidenceError(f"the EK template at {where} does not make a key of {template.algorithm}", hint=hint)


def _kind(public: TPMT_PUBLIC) -> tuple[int, int]:
    details = public.parameters
    is_rsa = int(public.type) == TPM2_ALG.RSA
    return int(public.type), int(details.rsaDetail.keyBits if is_rsa else details.eccDetail.curveID)


def _with_nonce(area: bytes, nonce: bytes, template: EkTemplate) -> bytes:
    public = TPMT_PUBLIC.unmarshal(area)[0]
    if template is EkTemplate.RSA_2048:
        public.unique = TPMU_PUBLIC_ID(rsa=nonce[:256].ljust(256, b"\0"))
    else:
        public.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=nonce[:32].ljust(32, b"\0"), y=bytes(32)))
    return bytes(public.marshal())


def _split(data: bytes) -> tuple[bytes, ...]:
    """The DER elements at the beginning of ``data``; what follows them is padding."""
    found: list[bytes] = []
    while (length := _element(data)) is not None:
        found.append(data[:length])
        data = data[length:]
    return tuple(found)


def _element(data: bytes) -> int | None:
    """Bytes of the SEQUENCE that ``data`` begins with; none if it does not begin with a whole one (X.690, 8.1)."""
    header = 4  # tag, and a length in its long form with two bytes: a certificate has more than 255 bytes
    if len(data) < header or data[0] != _SEQUENCE or data[1] != 0x82:  # noqa: PLR2004 - two bytes of length
        return None
    length = header + int.from_bytes(data[2:4], "big")
    return length if length <= len(data) else None
