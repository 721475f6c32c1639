"""Attacks on the exchange: its nonce, and the request that carries the evidence."""

from __future__ import annotations

import dataclasses
import hmac
import time
from typing import TYPE_CHECKING

from support import evidence
from support import reference_device as wire
from support.evil_device import NONCE_LIFETIME, nonce_of, software_csr
from support.reference_device import Answer, Proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.evil_device import EvilDevice, Stage

_ATTESTATION = "1.2.840.113549.1.9.16.2.59"
_VERSION_3 = b"\xa0\x03\x02\x01\x02"


# the nonce and the credential


def evidence_without_a_nonce(stage: Stage) -> Answer:
    """Nobody asked the CA for anything."""
    with stage.device() as device, stage.exchange(device) as exchange:
        return exchange.post(device.csr(device.certify(bytes(32))))


def replayed_request(stage: Stage) -> Answer:
    """The very request that was answered before, cookie and all."""
    with stage.device() as device:
        csr, cookie = _recording(stage, device)
        with stage.exchange(device) as exchange:
            return exchange.post(csr, Cookie=cookie)


def replayed_evidence(stage: Stage) -> Answer:
    """The same request, after the CA gave the same keys a new nonce."""
    with stage.device() as device:
        csr, _ = _recording(stage, device)
        with stage.exchange(device) as exchange:
            exchange.nonce()
            return exchange.post(csr)


def expired_nonce(stage: Stage) -> Answer:
    """The request comes too late."""
    with stage.device() as device, stage.exchange(device) as exchange:
        csr = device.csr(device.certify(exchange.nonce().qualifying_data))
        time.sleep(NONCE_LIFETIME + 0.1)
        return exchange.post(csr)


def nonce_of_another_session(stage: Stage) -> Answer:
    """Over another connection, without the cookie."""
    with stage.device() as device:
        with stage.exchange(device) as exchange:
            csr = device.csr(device.certify(exchange.nonce().qualifying_data))
        with stage.exchange(device) as exchange:
            return exchange.post(csr)


def nonce_of_another_exchange(stage: Stage) -> Answer:
    """Over another connection, which has an open exchange of its own, with its cookie."""
    with stage.device() as device, stage.exchange(device) as first, stage.exchange(device) as second:
        csr = device.csr(device.certify(first.nonce().qualifying_data))
        return second.post(csr, Cookie=second.nonce().cookie or "")


def guessed_cookie(stage: Stage) -> Answer:
    """Another client's exchange is looked for with a cookie of the right form."""
    with stage.device() as device, stage.exchange(device) as first, stage.exchange(device) as second:
        csr = device.csr(device.certify(first.nonce().qualifying_data))
        return second.post(csr, Cookie="est-exchange=" + "A" * 43)


def guessed_secret(stage: Stage) -> Answer:
    """The right nonce, keyed by a secret that is not the activated one."""
    with stage.device() as device:
        return stage.submit(device, lambda nonce: device.certify(hmac.digest(bytes(32), nonce.nonce, "sha256")))


def nonce_without_its_secret(stage: Stage) -> Answer:
    """The bare nonce, as one may use it who shows an attestation key's certificate; but a credential was asked for."""
    with stage.device() as device:
        return stage.submit(device, lambda nonce: device.certify(nonce.nonce))


def nonce_without_credential(stage: Stage) -> Answer:
    """The bare nonce, no credential asked for, and no certificate that speaks for the attestation key."""
    with stage.device() as device, stage.exchange(device) as exchange:
        return exchange.post(device.csr(device.certify(nonce_of(exchange.ask(None)))))


def nonce_with_a_damaged_certificate(stage: Stage) -> Answer:
    """The same, and the certificate that should speak for the attestation key says that it is of version 4."""
    with stage.device() as device, stage.exchange(device) as exchange:
        proof = device.certify(nonce_of(exchange.ask(None)))
        wrong = device.ek_certificate.replace(_VERSION_3, b"\xa0\x03\x02\x01\x03", 1)
        return exchange.post(device.csr(dataclasses.replace(proof, certificates=(wrong,))))


def credential_for_a_damaged_certificate(stage: Stage) -> Answer:
    """The EK certificate says that it is of version 4, which nobody can read."""
    with stage.device() as device, stage.exchange(device) as exchange:
        device.ek_certificate = device.ek_certificate.replace(_VERSION_3, b"\xa0\x03\x02\x01\x03", 1)
        return exchange.ask(device.request())


# the request


def altered_request(stage: Stage) -> Answer:
    """Somebody changed a good request after it was signed."""
    with stage.device() as device, stage.exchange(device) as exchange:
        csr = device.csr(device.certify(exchange.nonce().qualifying_data), name="sensor-1")
        return exchange.post(csr.replace(b"sensor-1", b"sensor-2"))


def altered_request_beside_a_token(stage: Stage) -> Answer:
    """The same, without a nonce, by somebody who has a good token."""
    with stage.device() as device, stage.exchange(device) as exchange:
        csr = device.csr(device.certify(bytes(32)), name="sensor-1")
        return exchange.post(csr.replace(b"sensor-1", b"sensor-2"), **stage.token("sensor-2"))


def request_signed_by_another_key(stage: Stage) -> Answer:
    """It names the certified key, and is signed by one of the attacker's."""
    with stage.device() as device, stage.exchange(device) as exchange:
        proof = device.certify(exchange.nonce().qualifying_data)
        return exchange.post(software_csr(evidence.new_key(), proof, claimed=device.key.spki))


def evidence_twice(stage: Stage) -> Answer:
    """Two attributes."""
    return _with_attributes(stage, lambda proof: [wire.attestation(proof)] * 2)


def evidence_with_two_values(stage: Stage) -> Answer:
    """One attribute with two values."""

    def change(proof: Proof) -> list[bytes]:
        kind = wire.oid(_ATTESTATION)
        values = wire.attestation(proof).partition(kind)[2]
        bundle = values[4:]  # after the SET's tag and its length in three bytes
        assert wire.der(0x31, bundle) == values
        return [wire.sequence(kind, wire.der(0x31, bundle, bundle))]

    return _with_attributes(stage, change)


def evidence_with_two_statements(stage: Stage) -> Answer:
    """One bundle with two statements: which one counts?"""
    part = wire.sequence(wire.oid("2.23.133.20.1"), wire.sequence(*[wire.octets(b"x")] * 3))
    return _with_attributes(stage, lambda _: [_attribute(wire.sequence(wire.sequence(part, part)))])


def evidence_of_another_kind(stage: Stage) -> Answer:
    """A statement type that the CA does not know."""
    part = wire.sequence(wire.oid("2.23.133.20.2"), wire.sequence(wire.octets(b"x")))
    return _with_attributes(stage, lambda _: [_attribute(wire.sequence(wire.sequence(part)))])


def empty_evidence(stage: Stage) -> Answer:
    """A bundle with nothing in it."""
    return _with_attributes(stage, lambda _: [_attribute(wire.sequence())])


def evidence_without_value(stage: Stage) -> Answer:
    """An attribute without a value."""
    return _with_attributes(stage, lambda _: [wire.sequence(wire.oid(_ATTESTATION), wire.der(0x31))])


def evidence_of_empty_parts(stage: Stage) -> Answer:
    """A statement whose parts are empty."""
    return _with_attributes(stage, lambda _: [wire.attestation(Proof(b"", b"", b""))])


def garbage_evidence(stage: Stage) -> Answer:
    """The value is no bundle."""
    return _with_attributes(stage, lambda _: [_attribute(wire.octets(b"\xff" * 64))])


def garbage_request(stage: Stage) -> Answer:
    """The request is no request."""
    with stage.device() as device, stage.exchange(device) as exchange:
        exchange.nonce()
        return exchange.post(b"\xff" * 600)


def garbage_without_a_nonce(stage: Stage) -> Answer:
    """The same by somebody who shows nothing else."""
    with stage.device() as device, stage.exchange(device) as exchange:
        return exchange.post(b"\xff" * 600)


def garbage_beside_a_token(stage: Stage) -> Answer:
    """The same by somebody who has a good token; but a credential was asked for."""
    with stage.device() as device, stage.exchange(device) as exchange:
        exchange.nonce()
        return exchange.post(b"\xff" * 600, **stage.token("sensor-1"))


def request_that_is_no_base64(stage: Stage) -> Answer:
    """Nor is the body of that form."""
    with stage.device() as device, stage.exchange(device) as exchange:
        exchange.nonce()
        return exchange.send("POST", "simpleenroll", b"\xff" * 600, Content_Type="application/pkcs10")


def garbage_attestation(stage: Stage) -> Answer:
    """The frame is right, TPMS_ATTEST is none."""
    return _with_part(stage, attest=b"\xff" * 100)


def garbage_signature(stage: Stage) -> Answer:
    """The frame is right, the signature is none."""
    return _with_part(stage, signature=b"\xff" * 72)


def garbage_public_area(stage: Stage) -> Answer:
    """The frame is right, TPMT_PUBLIC is none."""
    return _with_part(stage, public=b"\xff" * 90)


def evidence_without_public_area(stage: Stage) -> Answer:
    """Then nobody knows the key's attributes."""
    return _with_part(stage, public=None)


def oversized_evidence(stage: Stage) -> Answer:
    """Not too large for a request, but for evidence."""
    return _with_part(stage, public=bytes(4000))


def oversized_request(stage: Stage) -> Answer:
    """Too large for a request, but not for HTTP."""
    return _with_part(stage, public=bytes(20_000))


def huge_evidence(stage: Stage) -> Answer:
    """1 MB."""
    return _with_part(stage, attest=bytes(2**20))


def _recording(stage: Stage, device: EvilDevice) -> tuple[bytes, str]:
    """CSR and cookie of an honest enrollment."""
    with stage.exchange(device) as exchange:
        nonce = exchange.nonce()
        csr = device.csr(device.certify(nonce.qualifying_data))
        stage.honest += len(exchange.post(csr).certificates)
    return csr, nonce.cookie or ""


def _with_attributes(stage: Stage, change: Callable[[Proof], list[bytes]]) -> Answer:
    """A request whose attributes ``change`` makes of good evidence."""
    with stage.device() as device, stage.exchange(device) as exchange:
        proof = device.certify(exchange.nonce().qualifying_data)
        return exchange.post(device.csr_with(change(proof)))


def _with_part(stage: Stage, **parts: bytes | None) -> Answer:
    """A request in whose evidence one part is another."""
    return _with_attributes(stage, lambda proof: [wire.attestation(dataclasses.replace(proof, **parts))])  # type: ignore[arg-type]  # by name


def _attribute(bundle: bytes) -> bytes:
    return wire.sequence(wire.oid(_ATTESTATION), wire.der(0x31, bundle))
