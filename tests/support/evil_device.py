"""What an attacker works with: a genuine TPM that does what any TPM does, and a CA to attack."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE,
    TPMT_SYM_DEF_OBJECT,
)

from support import attestation, evidence
from support import reference_device as wire
from support.authority import basic, make_token
from support.reference_device import Exchange, Key, Proof, ReferenceDevice
from tpm_mtls.certificates import spki
from tpm_mtls_pki import audit, bindings, ek_roots, groups, records
from tpm_mtls_pki.groups import ApprovalRule, Group

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric import rsa

    from support.authority import EstHost
    from support.evidence import Certifier
    from support.reference_device import Answer, Nonce
    from support.tpm import SimulatedTpm
    from tpm_mtls_pki.issuance import Registrar

BORN_INSIDE: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
SIGN: Final = TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
NONCE_LIFETIME: Final = 2.0
"""Seconds of a CA whose nonces an attacker lets expire."""

_ECC_WITHOUT_AUTH = b"\x00\x23" + bytes(4)  # TPMT_SENSITIVE up to the key: no authorization value, no seed


class EvilDevice(ReferenceDevice):
    """A device whose owner is the attacker."""

    @property
    def ek_hash(self) -> str:
        """By which the CA knows its TPM."""
        return hashlib.sha256(wire.spki(x509.load_der_x509_certificate(self.ek_certificate))).hexdigest()

    @property
    def ek_key(self) -> rsa.RSAPublicKey:
        """The endorsement key, for a certificate by somebody else."""
        key = x509.load_der_x509_certificate(self.ek_certificate).public_key()
        assert not isinstance(key, ec.EllipticCurvePublicKey)
        return key  # type: ignore[return-value]  # RSA unless the device was made with another

    def loose_ak(self) -> Key:
        """An attestation key that is not restricted, and so signs anything."""
        return self.make_key(BORN_INSIDE | SIGN, scheme=TPM2_ALG.ECDSA)

    def import_key(self, key: ec.EllipticCurvePrivateKey) -> Key:
        """TPM2_Import of a key that was made elsewhere."""
        area = attestation.public_area(key, attributes=int(SIGN))
        public, _ = TPM2B_PUBLIC.unmarshal(attestation.sized(area))
        nothing = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
        duplicate = TPM2B_PRIVATE(_sensitive(key))  # without wrappers: whoever listens on the bus has it, too
        with self._storage() as parent:
            private = self._esapi.import_(parent, TPM2B_DATA(), public, duplicate, TPM2B_ENCRYPTED_SECRET(), nothing)
        return Key((private, public), area, spki(key.public_key()))

    def invent(self, key: Key, extra: bytes, signer: Key) -> Proof:
        """A Certify of ``key`` that no TPM made, signed by a key that signs anything; the signature is a bare value."""
        attest = attestation.attest(attestation.certified(attestation.name_of(key.public)), extra=extra)
        return Proof(attest, self.sign(signer, attest), key.public)

    def assert_refuses_software_key(self, key: ec.EllipticCurvePrivateKey, area: bytes) -> None:
        """No TPM loads a key from outside as one that was born in it."""
        public, _ = TPM2B_PUBLIC.unmarshal(attestation.sized(area))
        sensitive, _ = TPM2B_SENSITIVE.unmarshal(_sensitive(key))
        with pytest.raises(TSS2_Exception, match=r"attributes|inconsistent"):
            self._esapi.load_external(public, sensitive, hierarchy=ESYS_TR.NULL)

    def assert_stays_closed(self, answer: Answer, *foreign: bytes) -> None:
        """The TPM does not open the credential in ``answer``: neither for its attestation key, nor for others.

        Args:
            answer: to a nonce request.
            foreign: public areas of keys that are not in the TPM; anybody may load these.
        """
        with pytest.raises(TSS2_Exception, match="integrity"):
            self.open(json.loads(answer.body))
        info = json.loads(answer.body)["respTypeInfo"]["respInfo"]
        blob, _ = TPM2B_ID_OBJECT.unmarshal(wire.unb64url(info["credentialBlob"]))
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(wire.unb64url(info["encryptedSecret"]))
        for area in foreign:
            public, _ = TPM2B_PUBLIC.unmarshal(attestation.sized(area))
            handle = self._esapi.load_external(public, hierarchy=ESYS_TR.NULL)
            sessions = {"session1": ESYS_TR.PASSWORD}
            try:
                with self._endorsement() as session, pytest.raises(TSS2_Exception, match=r"auth"):
                    self._esapi.activate_credential(handle, self.ek, blob, secret, **sessions, session2=session)
            finally:
                self._esapi.flush_context(handle)


@dataclass
class Stage:
    """Where an attack takes place.

    Attributes:
        registrar: the CA.
        host: its EST server.
        tpm: a genuine TPM, whose maker the CA trusts.
        other: another one, of a maker that the CA does not trust unless `trust_other` was called.
        maker: a trusted maker whose key is in the test's hands, to certify what no maker would.
        honest: certificates that were issued to honest devices while an attack was prepared.
    """

    registrar: Registrar
    host: EstHost
    tpm: SimulatedTpm
    other: SimulatedTpm
    maker: Certifier
    honest: int = 0

    @contextlib.contextmanager
    def device(self, *, other: bool = False) -> Iterator[EvilDevice]:
        """A device with one of the TPMs, and new keys."""
        with EvilDevice((self.other if other else self.tpm).tcti) as device:
            yield device

    @contextlib.contextmanager
    def exchange(self, device: ReferenceDevice, context: ssl.SSLContext | None = None) -> Iterator[Exchange]:
        """A TLS connection to the CA."""
        with Exchange(self.host.port, context or self.host.context(), device) as exchange:
            yield exchange

    def submit(
        self,
        device: ReferenceDevice,
        make: Callable[[Nonce], Proof] | None = None,
        *,
        key: Key | None = None,
        request: dict[str, Any] | None = None,
        **headers: str,
    ) -> Answer:
        """An enrollment with another nonce request, or evidence that ``make`` makes."""
        with self.exchange(device) as exchange:
            nonce = device.open(json.loads(exchange.ask(request or device.request()).body))
            proof = make(nonce) if make else device.certify(nonce.qualifying_data, key=key)
            return exchange.post(device.csr(proof, key=key), **headers)

    def honest_enrollment(self) -> Answer:
        """What a device does with that TPM whose owner is no attacker."""
        with self.device() as device, self.exchange(device) as exchange:
            return exchange.enroll()

    def trust_other(self) -> None:
        """Makes the other TPM a genuine one, too."""
        trust_maker(self.registrar, self.other)

    def rules(self, **rules: Any) -> None:  # noqa: ANN401 - those of Group
        """Sets the rules for TPMs that are not on the allow-list; no approval is needed unless it is said."""
        with self.registrar.authority.database.writing() as connection:
            group = Group(groups.DEFAULT, **({"approval": ApprovalRule.NEVER} | rules))
            groups.save(connection, group, now=self.registrar.clock())

    def bind(self, name: str, device: EvilDevice) -> None:
        """What an earlier enrollment left: the name belongs to that TPM."""
        with self.registrar.authority.database.writing() as connection:
            bindings.bind(connection, name, device.ek_hash, now=self.registrar.clock())

    def token(self, name: str) -> dict[str, str]:
        """The header of somebody who has a good bootstrap token for ``name``."""
        return basic(name, make_token(self.registrar, name))

    def refusals(self) -> list[int]:
        """The numbers of the checks that refused, from the audit log, which is whole."""
        with self.registrar.authority.database.reading() as connection:
            audit.verify(connection)
            found = [entry for entry in audit.entries(connection) if entry.event == "evidence-refused"]
        assert all(entry.detail["why"] for entry in found)
        return [entry.detail["check"] for entry in found]

    def certificates(self) -> int:
        """How many certificates the CA has issued, its own server's apart."""
        with self.registrar.authority.database.reading() as connection:
            return len([record for record in records.listing(connection) if record.profile != "server"])


def trust_maker(registrar: Registrar, tpm: SimulatedTpm) -> None:
    """Trusts the maker of ``tpm``, as ``pki ek-roots add`` does."""
    folder = tpm.simulator.folder / "ca"
    found = [(folder / name).read_bytes() for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem")]
    trust(registrar, *(x509.load_pem_x509_certificate(pem) for pem in found))


def trust(registrar: Registrar, *certificates: x509.Certificate) -> None:
    """Trusts TPM makers."""
    with registrar.authority.database.writing() as connection:
        ek_roots.add(connection, certificates, now=registrar.clock())


def software_csr(key: ec.EllipticCurvePrivateKey, proof: Proof, *, claimed: bytes | None = None) -> bytes:
    """A CSR with evidence, signed in software; for the public key ``claimed`` (DER SPKI) if it is given."""
    body = wire.request_info(claimed or spki(key.public_key()), None, [wire.attestation(proof)])
    signature = key.sign(body, ec.ECDSA(hashes.SHA256()))
    return wire.sequence(body, wire.sequence(wire.oid("1.2.840.10045.4.3.2")), wire.bit_string(signature))


def pretended_key(key: ec.EllipticCurvePrivateKey) -> Key:
    """A software key with the public area of one in a TPM."""
    return Key((None, None), evidence.tls_public(key), spki(key.public_key()))


def guess(answer: Answer) -> bytes:
    """Qualifying data for the nonce in ``answer``, with a secret that is not the one in the credential."""
    return hmac.digest(b"guess" * 6, nonce_of(answer), "sha256")


def nonce_of(answer: Answer) -> bytes:
    """The nonce in an answer."""
    return wire.unb64url(json.loads(answer.body)["nonce"])


def _sensitive(key: ec.EllipticCurvePrivateKey) -> bytes:
    """TPM2B_SENSITIVE."""
    number = key.private_numbers().private_value.to_bytes(32, "big")
    return attestation.sized(_ECC_WITHOUT_AUTH + attestation.sized(number))
