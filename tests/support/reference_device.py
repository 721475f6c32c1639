"""A device that enrolls with evidence, written from docs/protocol.md and the standards alone: the outside view.

It shares no code with ours: TPM commands are sent by tpm2-pytss, requests are DER by hand, HTTPS is the standard
library's. What it can enroll with, somebody else's client can.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_SE, TPM2_ST, TPMA_OBJECT
from tpm2_pytss.ESAPI import ESAPI
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMT_TK_HASHCHECK,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

    from cryptography import x509

BASE = "/.well-known/est"
TYPE = "2.25.13410613074888960709145795346448504354"
FRESHNESS_TYPE = "application/est-attestation-freshness+json"
_BORN_INSIDE = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
_STORAGE = _BORN_INSIDE | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
_SIGN = _STORAGE | TPMA_OBJECT.SIGN_ENCRYPT
_EC_PUBLIC_KEY, _P256, _ECDSA_SHA256 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.2.840.10045.4.3.2"
_ATTESTATION, _TPM_CERTIFY = "1.2.840.113549.1.9.16.2.59", "2.23.133.20.1"


@dataclass(frozen=True)
class Key:
    """A P-256 key of the TPM's.

    Attributes:
        blobs: TPM2B_PRIVATE and TPM2B_PUBLIC, as TPM2_Load wants them.
        public: TPMT_PUBLIC, marshalled.
        spki: SubjectPublicKeyInfo, DER.
    """

    blobs: tuple[Any, Any]
    public: bytes
    spki: bytes


@dataclass(frozen=True)
class Answer:
    """An answer over HTTPS."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def certificates(self) -> list[x509.Certificate]:
        """Those of a certs-only CMS in base64."""
        assert (self.status, self.headers["Content-Type"].partition(";")[0]) == (200, "application/pkcs7-mime"), self
        return pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))

    def certificate_of(self, key: Key) -> x509.Certificate:
        """The one for ``key``: certificates in one answer are told apart by their keys."""
        (found,) = [each for each in self.certificates if spki(each) == key.spki]
        return found


@dataclass(frozen=True)
class Nonce:
    """What the CA answered, and what the TPM made of it.

    Attributes:
        nonce: the server's nonce.
        qualifying_data: what the Certify must carry in extraData.
        cookie: to be sent with the request that uses the nonce; none if there was none.
        answer: the JSON object.
    """

    nonce: bytes
    qualifying_data: bytes
    cookie: str | None
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """The parts of the evidence, for a test to exchange."""

    attest: bytes
    signature: bytes
    public: bytes | None
    certificates: tuple[bytes, ...] = ()


class ReferenceDevice:
    """See the module's docstring. A TPM has room for three objects, so keys are loaded for one command each."""

    def __init__(self, tcti: str, *, algorithm: str = "rsa") -> None:
        """Opens the TPM, reads the EK certificate (``algorithm``: ``rsa`` or ``ecc``) and makes the three keys."""
        self._esapi = ESAPI(tcti)
        name, handle = {"rsa": ("EK-RSA2048", 0x81010001), "ecc": ("EK-HIGH-ECC384", 0x81010016)}[algorithm]
        certificate, _ = create_ek_template(name, NVReadEK(self._esapi))
        self._needs_session = algorithm == "rsa"
        self.ek_certificate = bytes(certificate)
        self.ek = self._esapi.tr_from_tpmpublic(handle)
        public, *_ = self._esapi.read_public(self.ek)
        self.ek_public = bytes(public.publicArea.marshal())
        self.ak = self.make_ak()
        self.key = self.make_key()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._esapi.close()

    # keys

    def make_key(self, attributes: TPMA_OBJECT = _SIGN, *, scheme: TPM2_ALG = TPM2_ALG.NULL) -> Key:
        """A key under this TPM's storage primary, made by it."""
        algorithm = "ecc256:null" if scheme == TPM2_ALG.NULL else "ecc256:ecdsa_sha256"
        template = TPM2B_PUBLIC.parse(algorithm, objectAttributes=attributes)
        template.publicArea.parameters.eccDetail.symmetric.algorithm = TPM2_ALG.NULL
        with self._storage() as parent:
            private, public, *_ = self._esapi.create(parent, TPM2B_SENSITIVE_CREATE(), template)
        return Key((private, public), bytes(public.publicArea.marshal()), public.to_der())

    def make_ak(self) -> Key:
        """An attestation key."""
        return self.make_key(_SIGN | TPMA_OBJECT.RESTRICTED, scheme=TPM2_ALG.ECDSA)

    @contextlib.contextmanager
    def _storage(self) -> Iterator[ESYS_TR]:
        attributes = _STORAGE | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
        template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=attributes)
        handle, *_ = self._esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        try:
            yield handle
        finally:
            self._esapi.flush_context(handle)

    @contextlib.contextmanager
    def _loaded(self, key: Key) -> Iterator[ESYS_TR]:
        with self._storage() as parent:
            handle = self._esapi.load(parent, *key.blobs)
        try:
            yield handle
        finally:
            self._esapi.flush_context(handle)

    # the exchange

    def request(self) -> dict[str, Any]:
        """The nonce request that asks for an activation."""
        info = {"ekCertificate": b64url(self.ek_certificate), "akPublic": b64url(self.ak.public)}
        return {"len": 32, "reqTypeInfo": {"type": TYPE, "reqInfo": info}}

    def open(self, answer: dict[str, Any], cookie: str | None = None) -> Nonce:
        """Activates the credential of a nonce response."""
        nonce = unb64url(answer["nonce"])
        info = answer["respTypeInfo"]["respInfo"]
        secret = self.activate(unb64url(info["credentialBlob"]), unb64url(info["encryptedSecret"]))
        return Nonce(nonce, hmac.digest(secret, nonce, "sha256"), cookie, answer)

    def activate(self, blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential."""
        credential, _ = TPM2B_ID_OBJECT.unmarshal(blob)
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
        with self._loaded(self.ak) as ak:
            if not self._needs_session:
                return bytes(self._esapi.activate_credential(ak, self.ek, credential, secret))
            with self._endorsement() as session:
                sessions = {"session1": ESYS_TR.PASSWORD, "session2": session}
                return bytes(self._esapi.activate_credential(ak, self.ek, credential, secret, **sessions))

    @contextlib.contextmanager
    def _endorsement(self) -> Iterator[ESYS_TR]:
        session = self._esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
        )
        try:
            self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            yield session
        finally:
            self._esapi.flush_context(session)

    def certify(self, qualifying_data: bytes, *, key: Key | None = None, ak: Key | None = None) -> Proof:
        """TPM2_Certify of ``key`` by ``ak``."""
        key, ak = key or self.key, ak or self.ak
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        with self._loaded(key) as loaded, self._loaded(ak) as signer:
            attest, signature = self._esapi.certify(loaded, signer, TPM2B_DATA(qualifying_data), scheme)
        return Proof(bytes(attest), bytes(signature.marshal()), key.public)

    @staticmethod
    def bare_signature(proof: Proof) -> bytes:
        """The Ecdsa-Sig-Value in the proof's TPMT_SIGNATURE: sigAlg, hash, and two sized integers."""
        size = int.from_bytes(proof.signature[4:6], "big")
        return sequence(integer(proof.signature[6 : 6 + size]), integer(proof.signature[8 + size :]))

    def csr(self, proof: Proof | None, *, key: Key | None = None, name: str | None = None) -> bytes:
        """A CSR (DER) with the evidence, signed by the TPM."""
        return self.csr_with([] if proof is None else [attestation(proof)], key=key, name=name)

    def csr_with(self, attributes: Sequence[bytes], *, key: Key | None = None, name: str | None = None) -> bytes:
        """A CSR (DER) with these attributes (DER), signed by the TPM."""
        key = key or self.key
        body = request_info(key.spki, name, attributes)
        return sequence(body, sequence(oid(_ECDSA_SHA256)), bit_string(self.sign(key, body)))

    def sign(self, key: Key, data: bytes) -> bytes:
        """An ECDSA signature with SHA-256, DER."""
        digest = TPM2B_DIGEST(hashlib.sha256(data).digest())
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.ECDSA)
        scheme.details.ecdsa.hashAlg = TPM2_ALG.SHA256
        ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
        with self._loaded(key) as handle:
            signed = self._esapi.sign(handle, digest, scheme, ticket)  # a part of it does not keep the whole alive
        parts = signed.signature.ecdsa
        return sequence(integer(bytes(parts.signatureR)), integer(bytes(parts.signatureS)))


class Exchange:
    """The device's side of one TLS connection to the EST server."""

    def __init__(self, port: int, context: ssl.SSLContext, device: ReferenceDevice) -> None:
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        self._device = device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, method: str, operation: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request; header fields' underscores stand for hyphens."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, f"{BASE}/{operation}", body, fields)
        answer = self._connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def ask(self, request: dict[str, Any] | None) -> Answer:
        """A nonce request; none asks without parameters."""
        if request is None:
            return self.send("GET", "nonce")
        return self.send("POST", "nonce", json.dumps(request).encode(), Content_Type=FRESHNESS_TYPE)

    def nonce(self) -> Nonce:
        """A nonce with an activated credential."""
        answer = self.ask(self._device.request())
        assert answer.status == 200, answer
        return self._device.open(json.loads(answer.body), cookie_of(answer))

    def post(self, csr: bytes, *, renew: bool = False, **headers: str) -> Answer:
        """Sends a CSR."""
        operation = "simplereenroll" if renew else "simpleenroll"
        return self.send("POST", operation, base64.b64encode(csr), Content_Type="application/pkcs10", **headers)

    def enroll(self, *, renew: bool = False, key: Key | None = None, name: str | None = None) -> Answer:
        """The whole exchange over this connection."""
        proof = self._device.certify(self.nonce().qualifying_data, key=key)
        return self.post(self._device.csr(proof, key=key, name=name), renew=renew)


def cookie_of(answer: Answer) -> str | None:
    """The cookie of an answer, as it is to be sent back."""
    value = answer.headers.get("Set-Cookie")
    return value.partition(";")[0] if value else None


def spki(certificate: x509.Certificate) -> bytes:
    """The certificate's public key, DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# DER by hand


def attestation(proof: Proof) -> bytes:
    """The attribute id-aa-attestation with one tcg-attest-tpm-certify."""
    parts = [octets(proof.attest), octets(proof.signature)] + ([octets(proof.public)] if proof.public else [])
    statement = sequence(oid(_TPM_CERTIFY), sequence(*parts))
    certificates = [sequence(*proof.certificates)] if proof.certificates else []
    return sequence(oid(_ATTESTATION), der(0x31, sequence(sequence(statement), *certificates)))


def request_info(spki_der: bytes, name: str | None, attributes: Sequence[bytes]) -> bytes:
    """CertificationRequestInfo: RFC 2986, 4.1."""
    names = [der(0x31, sequence(oid("2.5.4.3"), der(0x0C, name.encode())))] if name else []
    return sequence(integer(b"\0"), sequence(*names), spki_der, der(0xA0, *attributes))


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def octets(content: bytes) -> bytes:
    return der(0x04, content)


def bit_string(content: bytes) -> bytes:
    return der(0x03, b"\0", content)


def integer(magnitude: bytes) -> bytes:
    number = int.from_bytes(magnitude, "big")
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return der(0x06, bytes(content))


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
