"""Attacks on what a certificate would be for: the TLS key, the attestation key, the endorsement key."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cryptography import x509
from tpm2_pytss.constants import TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC

from support import attestation, evidence
from support import reference_device as wire
from support.authority import make_csr
from support.evidence import ek_extensions, key_usage
from support.evil_device import BORN_INSIDE, SIGN, guess, pretended_key, software_csr
from support.reference_device import Answer, Key, Nonce, Proof
from tpm_mtls.certificates import spki

if TYPE_CHECKING:
    from support.evidence import Certifier
    from support.evil_device import EvilDevice, Stage

_DAY = evidence.DAY


# the TLS key


def software_key(stage: Stage) -> Answer:
    """A well-formed CSR, and nothing that speaks for it."""
    with stage.device() as device, stage.exchange(device) as exchange:
        return exchange.post(make_csr(evidence.new_key(), name="sensor-1"))


def software_key_and_software_attestation_key(stage: Stage) -> Answer:
    """All in software but the EK certificate, which is public: nobody opens the credential."""
    key, ak = evidence.new_key(), attestation.AttestationKey(evidence.new_key(), "ecdsa-sha256")
    with stage.device() as device:
        area = attestation.public_area(ak.key, ak.scheme)
        device.assert_refuses_software_key(key, evidence.tls_public(key))
        device.ak = Key((None, None), area, spki(ak.key.public_key()))
        with stage.exchange(device) as exchange:
            extra, public = guess(exchange.ask(device.request())), evidence.tls_public(key)
            attest = attestation.attest(attestation.certified(attestation.name_of(public)), extra=extra)
            return exchange.post(software_csr(key, Proof(attest, ak.sign_as_tpm(attest), public)))


def software_key_with_evidence_of_another(stage: Stage) -> Answer:
    """Perfect evidence for a key in the TPM; the CSR asks for a certificate of a software key, and proves that."""
    with stage.device() as device, stage.exchange(device) as exchange:
        proof = device.certify(exchange.nonce().qualifying_data)
        return exchange.post(software_csr(evidence.new_key(), proof))


def other_key_of_the_tpm(stage: Stage) -> Answer:
    """The certified key is not the CSR's, though both are in the TPM."""
    with stage.device() as device:
        other = device.make_key()
        return stage.submit(device, lambda nonce: device.certify(nonce.qualifying_data, key=other))


def key_that_can_leave(stage: Stage) -> Answer:
    """Made in the TPM, without fixedTPM and fixedParent: its owner can duplicate it."""
    with stage.device() as device:
        return stage.submit(device, key=device.make_key(SIGN | TPMA_OBJECT.SENSITIVEDATAORIGIN))


def imported_key(stage: Stage) -> Answer:
    """Made elsewhere and imported; its public area says so."""
    with stage.device() as device:
        return stage.submit(device, key=device.import_key(evidence.new_key()))


def imported_key_claims_residency(stage: Stage) -> Answer:
    """The same, but the public area that is shown has the attributes of a key born in the TPM."""
    software = evidence.new_key()
    claimed = attestation.public_area(software, attributes=int(SIGN | BORN_INSIDE))
    with stage.device() as device:
        key = device.import_key(software)

        def make(nonce: Nonce) -> Proof:
            return dataclasses.replace(device.certify(nonce.qualifying_data, key=key), public=claimed)

        return stage.submit(device, make, key=key)


def attestation_key_as_tls_key(stage: Stage) -> Answer:
    """A restricted key for TLS: then a handshake could pass for a quote."""
    with stage.device() as device, stage.exchange(device) as exchange:
        proof = device.certify(exchange.nonce().qualifying_data, key=device.ak)
        return exchange.post(software_csr(evidence.new_key(), proof))


# the attestation key


def unrestricted_attestation_key(stage: Stage) -> Answer:
    """It is in the TPM and its credential opens; but it signs anything, an invented Certify, too."""
    software = evidence.new_key()
    with stage.device() as device, stage.exchange(device) as exchange:
        device.ak = device.loose_ak()
        proof = device.invent(pretended_key(software), exchange.nonce().qualifying_data, device.ak)
        return exchange.post(software_csr(software, proof))


def unrestricted_attestation_key_claims_otherwise(stage: Stage) -> Answer:
    """The nonce request says that it is restricted: so it has another Name, and no TPM opens the credential."""
    software = evidence.new_key()
    with stage.device() as device, stage.exchange(device) as exchange:
        loose = device.loose_ak()
        area, _ = TPM2B_PUBLIC.unmarshal(attestation.sized(loose.public))
        area.publicArea.objectAttributes = BORN_INSIDE | SIGN | TPMA_OBJECT.RESTRICTED
        device.ak = dataclasses.replace(loose, public=bytes(area.publicArea.marshal()))
        answer = exchange.ask(device.request())
        device.assert_stays_closed(answer, device.ak.public)
        return exchange.post(software_csr(software, device.invent(pretended_key(software), guess(answer), loose)))


def attestation_key_that_can_leave(stage: Stage) -> Answer:
    """A restricted key that its owner can duplicate to a TPM without a maker."""
    attributes = SIGN | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SENSITIVEDATAORIGIN
    with stage.device() as device:
        device.ak = device.make_key(attributes, scheme=TPM2_ALG.ECDSA)
        return stage.submit(device)


def attestation_key_of_another_tpm(stage: Stage) -> Answer:
    """The EK certificate is a genuine chip's, which the attacker has; both keys are in one without a trusted maker."""
    with stage.device() as victim, stage.device(other=True) as own:
        own.ek_certificate = victim.ek_certificate
        with stage.exchange(own) as exchange:
            answer = exchange.ask(own.request())
            victim.assert_stays_closed(answer, own.ak.public)
            return exchange.post(own.csr(own.certify(guess(answer))))


def another_key_signs(stage: Stage) -> Answer:
    """The credential of a good attestation key is opened; an unrestricted one signs the Certify in its place."""
    with stage.device() as device:
        loose = device.loose_ak()
        return stage.submit(device, lambda nonce: device.invent(device.key, nonce.qualifying_data, loose))


# the endorsement key


def endorsement_of_another_chip(stage: Stage) -> Answer:
    """The certificate of another genuine chip with one's own EK as a decoy, for which the credential opens."""
    stage.trust_other()
    with stage.device() as device, stage.device(other=True) as victim:
        request = _request(device, ekCertificate=victim.ek_certificate, ekPublic=device.ek_public)
        return stage.submit(device, request=request)


def endorsement_without_certificate(stage: Stage) -> Answer:
    """Only the EK's public area, which is on nobody's list."""
    with stage.device() as device:
        return stage.submit(device, request=_request(device, ekCertificate=None, ekPublic=device.ek_public))


def endorsement_of_an_unknown_maker(stage: Stage) -> Answer:
    """A TPM that works as any does, of a maker that nobody trusts: so is every emulated one."""
    with stage.device(other=True) as device:
        return stage.submit(device)


def expired_endorsement(stage: Stage) -> Answer:
    """The maker's certificate has ended."""
    now = stage.registrar.clock()
    return endorsed(stage, stage.maker, start=now - 10 * _DAY, end=now - _DAY)


def endorsement_from_the_future(stage: Stage) -> Answer:
    """It is not valid yet."""
    now = stage.registrar.clock()
    return endorsed(stage, stage.maker, start=now + _DAY, end=now + 10 * _DAY)


def self_made_endorsement(stage: Stage) -> Answer:
    """By a CA of one's own with the maker's name, which is sent along."""
    own = evidence.new_root("Maker Root")
    return endorsed(stage, own, chain=(own.der,))


def endorsement_for_signing(stage: Stage) -> Answer:
    """The maker certified the key for signatures (keyUsage)."""
    return endorsed(stage, stage.maker, usage="digital_signature")


def endorsement_for_tls(stage: Stage) -> Answer:
    """The maker certified the key for TLS (extendedKeyUsage)."""
    purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    return endorsed(stage, stage.maker, purpose=(purpose, False))


def chain_through_a_leaf(stage: Stage) -> Answer:
    """A genuine chip's EK certificate plays the CA that issued one's own."""
    leaf = stage.maker.below("chip", ek_extensions())
    return endorsed(stage, leaf, chain=(leaf.der,))


def endorsed(
    stage: Stage,
    certifier: Certifier,
    *,
    usage: str = "key_encipherment",
    purpose: tuple[x509.ExtensionType, bool] | None = None,
    chain: tuple[bytes, ...] = (),
    **validity: Any,  # noqa: ANN401 - as of `Certifier.certify`
) -> Answer:
    """An enrollment with an EK certificate that ``certifier`` wrote for the TPM's own EK; good unless it is changed."""
    changes = {} if purpose is None else {"purpose": purpose}
    with stage.device() as device:
        extensions = ek_extensions(usage=(key_usage(usage), True), **changes)
        device.ek_certificate = evidence.der(certifier.certify("", device.ek_key, extensions, **validity))
        request = device.request()
        request["reqTypeInfo"]["reqInfo"]["ekChain"] = [wire.b64url(each) for each in chain]
        return stage.submit(device, request=request)


def _request(device: EvilDevice, **members: bytes | None) -> dict[str, Any]:
    """The nonce request with other members, or without them."""
    request = device.request()
    info: dict[str, Any] = request["reqTypeInfo"]["reqInfo"]
    for name, value in members.items():
        info[name] = value and wire.b64url(value)
    request["reqTypeInfo"]["reqInfo"] = {name: value for name, value in info.items() if value is not None}
    return request
