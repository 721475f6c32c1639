"""Evidence that a TLS key lives in a genuine TPM: what the TPM can say about it, collected and looked at.

    endorsement = read_endorsement(tpm)
    ak = make_attestation_key(tpm, endorsement)
    response = …                                     # the CA's answer to activation_request(endorsement, ak)
    evidence = collect_evidence(tpm, key, ak, response)
    request = build_csr(tpm, key, evidence=evidence)

Commands sent, besides those that make the keys: one to list the NV and three for a certificate of one KiB; then one to
load the attestation key, one to find the endorsement key or two to make it, one to activate (three in the low range),
one to certify, and one to flush each of the two. docs/protocol.md describes the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509

from tpm_mtls.certificates import UNREADABLE, certificate_spki
from tpm_mtls.errors import EvidenceError, EvidenceRefusedError
from tpm_mtls.evidence import Evidence
from tpm_mtls.evidence_checks import (
    check_attestation_key,
    check_certification,
    check_endorsement_key,
    check_freshness,
    check_requested_key,
    check_residency,
)
from tpm_mtls.freshness import CERTIFICATE_LIMIT, CHAIN_LIMIT, ActivationRequest, bind
from tpm_mtls.structures import EkTemplate, PublicArea, ek_hash, ek_public, parse_public_area

if TYPE_CHECKING:
    from tpm_mtls.attestation_key import AttestationKey
    from tpm_mtls.freshness import NonceResponse
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.keys import TpmKey


@dataclass(frozen=True)
class Endorsement:
    """An endorsement key and what its maker says about it; the CA verifies that.

    Attributes:
        template: the template it was made from.
        public: its public area.
        certificate: its certificate, DER; none if the TPM has none.
        chain: CA certificates (DER) that the TPM has beside it.
    """

    template: EkTemplate
    public: PublicArea
    certificate: bytes | None
    chain: tuple[bytes, ...] = ()

    @property
    def hash(self) -> str:
        """By which an allow-list knows it: SHA-256 of its public key (DER SubjectPublicKeyInfo), hex."""
        return ek_hash(self.public.spki or b"")


def read_endorsement(tpm: Tpm, template: EkTemplate | None = None) -> Endorsement:
    """The endorsement key by which this TPM is known: the cheapest that has a certificate, else the P-256 one.

    With a certificate, and without a template of the maker's own, the key need not be made for that: its public area
    follows from both. Whether the TPM really has it, `collect_evidence` finds out.

    Args:
        tpm: an open TPM.
        template: the key to take instead.

    Raises:
        EvidenceRefusedError: check 2: the TPM's key is not the certificate's.
        EvidenceError: certificate or template in the TPM are damaged.
        AlgorithmUnsupportedError: the TPM has no certificate, and no P-256.
    """
    keys = tpm.endorsement
    chosen = template or next(iter(keys.certified()), EkTemplate.ECC_P256)
    der = keys.certificate(chosen)
    certified = _public_key(der) if der is not None else None
    if certified is None or chosen.template_index in keys.indices:
        with keys.use(chosen) as made:
            public = made.public
    else:
        public = ek_public(chosen, certified)
    if certified is not None:
        check_endorsement_key(public, certified)
    return Endorsement(chosen, public, der, () if der is None else keys.chain()[:CHAIN_LIMIT])


def activation_request(endorsement: Endorsement, key: AttestationKey) -> ActivationRequest:
    """For which keys the CA shall make a credential."""
    return ActivationRequest(
        ak_public=key.public,
        ek_certificate=endorsement.certificate,
        ek_public=endorsement.public.data,
        ek_chain=endorsement.chain,
    )


def collect_evidence(tpm: Tpm, key: TpmKey, attestation_key: AttestationKey, response: NonceResponse) -> Evidence:
    """What the TPM says about ``key``, as an answer to the CA's nonce and credential.

    Afterwards it is looked at as the CA will look at it, so that what is doomed is explained here:

    1. (CA: the EK certificate.)
    2. The TPM has the endorsement key that the credential was asked for.
    3. The attestation key is one.
    4. The TPM opened the credential.
    5. The certification is well-formed, signed, and about this key; which is a TLS key.
    6. It is the key that the request will be for.
    7. It carries the HMAC of secret and nonce.
    8. (CA: to which device the TPM belongs.)

    Args:
        tpm: an open TPM; needs three object slots, two where ``key`` is persistent.
        key: the TLS key, loaded or persistent.
        attestation_key: the one for which the credential was asked for.
        response: the CA's answer.

    Raises:
        EvidenceRefusedError: a check failed; ``check`` is its number.
        EvidenceError: the CA gave no nonce or no credential, or one that this TPM cannot open.
        ForeignKeyError: the attestation key was made by another TPM, or this one was cleared since.
        AuthorizationError: the endorsement hierarchy or the key has another authorization value.
    """
    if response.activation is None or not response.nonce:
        raise EvidenceError(
            "the CA gave no nonce with a credential", hint="it cannot verify a TPM; enroll with a token: --token-file"
        )
    given = response.activation
    area = attestation_key.area
    check_attestation_key(area)  # 3
    with attestation_key.load(tpm) as ak:
        with tpm.endorsement.use(attestation_key.ek_template) as ek:
            _check_same_endorsement(ek.public, attestation_key)  # 2
            secret = tpm.attestation.activate_credential(ek, ak, given.credential_blob, given.encrypted_secret)  # 4
        expected = bind(secret.value, response.nonce)
        said = tpm.attestation.certify(key.loaded, ak, expected)
    public = key.public
    attest, certified = check_certification(said.attest, said.signature, area, public.data)  # 5
    # whether a policy, or an imported key, will do, is the CA's to say
    check_residency(certified, policies=None, imported=True)
    check_requested_key(certified, public.spki or b"")  # 6
    check_freshness(attest, expected)  # 7
    return Evidence(attest=said.attest, signature=said.signature, public=public.data)


def _check_same_endorsement(public: PublicArea, attestation_key: AttestationKey) -> None:
    if public.data != attestation_key.ek_public:
        known = ek_hash(parse_public_area(attestation_key.ek_public).spki or b"")
        raise EvidenceRefusedError(
            f"the TPM's endorsement key is {ek_hash(public.spki or b'')}, not {known}, which its certificate is for",
            hint="is the TPM exchanged, or was its endorsement hierarchy changed? its maker's certificate is void then",
            check=2,
        )


def _public_key(der: bytes) -> bytes:
    hint = "the TPM's maker put it there; without it only an allow-list at the CA helps"
    if len(der) > CERTIFICATE_LIMIT:
        raise EvidenceError(f"the EK certificate has more than {CERTIFICATE_LIMIT} bytes", hint=hint)
    try:
        return certificate_spki(x509.load_der_x509_certificate(der))
    except UNREADABLE as error:
        raise EvidenceError("the EK certificate in the TPM is damaged", hint=hint) from error
