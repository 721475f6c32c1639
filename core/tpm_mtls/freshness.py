"""Freshness nonces, and the activation of a credential in the same exchange: JSON over ``/.well-known/est/nonce``.

draft-ietf-lamps-attestation-freshness-08, 3.2 (messages) and 5.1 (EST over HTTPS). What ``reqInfo`` and ``respInfo``
hold is this project's own, under `TYPE_TPM`; docs/protocol.md describes it for other clients.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from tpm_mtls.errors import EvidenceError

TYPE_TPM: Final = "2.25.13410613074888960709145795346448504354"
"""The type of our ``reqInfo`` and ``respInfo``: an OID of our own, from the UUID 0a16ca45-eace-4ae2-83c8-1b4a92ebd622
(ITU-T X.667, 7), chosen once for these messages. It never changes; a change of their meaning gets another one."""

NONCE_LENGTHS = range(8, 65)
"""Bytes that a nonce may have, unless it is empty: draft, 3.2."""

NONCE_LENGTH = 32
"""Bytes of a nonce when nobody asks for another length: the digest of the HMAC that binds it."""

REQUEST_LIMIT = 24 * 1024
"""Bytes of a request: an EK certificate with four above it, 2 KiB each, in base64."""

RESPONSE_LIMIT = 4 * 1024
"""Bytes of a response: the largest blobs have 650, in base64 870."""

CERTIFICATE_LIMIT = 4 * 1024
"""Bytes of one certificate."""

CHAIN_LIMIT = 4
"""Certificates above the EK certificate."""

PUBLIC_LIMIT = 1024
"""Bytes of a TPMT_PUBLIC; as `tpm_mtls.structures.public_area.PUBLIC_LIMIT`, which the device side need not import."""

_BLOB_LIMIT = 1024
_LIFETIME_LIMIT = 2**31
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,38})){1,32}")
_HINT = "docs/protocol.md describes the messages"


@dataclass(frozen=True)
class ActivationRequest:
    """``reqInfo``: for which keys a credential is wanted. Nothing of it is verified.

    Attributes:
        ak_public: the attestation key's TPMT_PUBLIC.
        ek_certificate: the endorsement key's certificate, DER; none for a TPM without one.
        ek_public: the endorsement key's TPMT_PUBLIC; may be none with a certificate whose key has the default template
            (`tpm_mtls.structures.ek_public_from_certificate`).
        ek_chain: CA certificates (DER) from the TPM, in no particular order.
    """

    ak_public: bytes
    ek_certificate: bytes | None = None
    ek_public: bytes | None = None
    ek_chain: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ActivationResponse:
    """``respInfo``: the credential, for TPM2_ActivateCredential.

    Attributes:
        credential_blob: TPM2B_ID_OBJECT.
        encrypted_secret: TPM2B_ENCRYPTED_SECRET.
    """

    credential_blob: bytes
    encrypted_secret: bytes


@dataclass(frozen=True)
class NonceRequest:
    """What a client asks for.

    Attributes:
        length: bytes of the nonce; none for the server's choice.
        type: of ``reqInfo``, a dotted OID; none if there is none.
        activation: ``reqInfo``, if ``type`` is `TYPE_TPM`; one of another type is not looked at.
    """

    length: int | None = None
    type: str | None = None
    activation: ActivationRequest | None = None


@dataclass(frozen=True)
class NonceResponse:
    """What the server gives.

    Attributes:
        nonce: 8 to 64 bytes; empty if the server wants no freshness.
        expiry: seconds for which it is good; none if the server does not say.
        activation: ``respInfo``, if it is of type `TYPE_TPM`.
    """

    nonce: bytes
    expiry: int | None = None
    activation: ActivationResponse | None = None


def bind(secret: bytes, nonce: bytes) -> bytes:
    """The qualifying data of TPM2_Certify: HMAC-SHA-256 of ``nonce``, keyed by the activated ``secret``; 32 bytes.

    Whoever knows it has opened the credential and seen the nonce. Compare it with hmac.compare_digest.
    """
    return hmac.digest(secret, nonce, hashlib.sha256)


class _ReqInfo(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    akPublic: str  # noqa: N815 - the JSON member's name, as all below
    ekCertificate: str | None = None  # noqa: N815
    ekPublic: str | None = None  # noqa: N815
    ekChain: list[str] = []  # noqa: N815


class _RespInfo(msgspec.Struct, forbid_unknown_fields=True):
    credentialBlob: str  # noqa: N815
    encryptedSecret: str  # noqa: N815


class _ReqTypeInfo(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    reqInfo: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815


class _RespTypeInfo(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    respInfo: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815


class _Request(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    len: int | msgspec.UnsetType = msgspec.UNSET
    reqTypeInfo: _ReqTypeInfo | msgspec.UnsetType = msgspec.UNSET  # noqa: N815


class _Response(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    nonce: str
    expiry: int | msgspec.UnsetType = msgspec.UNSET
    respTypeInfo: _RespTypeInfo | msgspec.UnsetType = msgspec.UNSET  # noqa: N815


_T = TypeVar("_T")


def encode_request(request: NonceRequest) -> bytes:
    """The body of a POST; a request without anything in it is a GET without a body instead (draft, 5)."""
    info: _ReqTypeInfo | msgspec.UnsetType = msgspec.UNSET
    if request.activation is not None:
        given = request.activation
        content = _ReqInfo(
            akPublic=_text(given.ak_public),
            ekCertificate=None if given.ek_certificate is None else _text(given.ek_certificate),
            ekPublic=None if given.ek_public is None else _text(given.ek_public),
            ekChain=[_text(der) for der in given.ek_chain],
        )
        info = _ReqTypeInfo(TYPE_TPM, msgspec.Raw(msgspec.json.encode(content)))
    elif request.type is not None:
        info = _ReqTypeInfo(request.type)
    length = msgspec.UNSET if request.length is None else request.length
    return msgspec.json.encode(_Request(length, info))


def decode_request(body: bytes) -> NonceRequest:
    """The request in the body of a POST.

    Not verified: keys and certificates in it; they need not even parse.

    Raises:
        EvidenceError: larger than `REQUEST_LIMIT`, not such a JSON object, with unknown members, a length that no nonce
            has, a type that is no OID, or a ``reqInfo`` of type `TYPE_TPM` that is not one (empty or oversized parts,
            more certificates than `CHAIN_LIMIT`, neither certificate nor public area of an endorsement key).
    """
    if len(body) > REQUEST_LIMIT:
        raise EvidenceError(f"a nonce request of more than {REQUEST_LIMIT} bytes", hint=_HINT)
    request = _decode(body, _Request, "nonce request")
    length = None if isinstance(request.len, msgspec.UnsetType) else request.len
    if length is not None and length not in NONCE_LENGTHS:
        raise EvidenceError(f"no nonce has {length} bytes", hint=_HINT)
    info = request.reqTypeInfo
    if isinstance(info, msgspec.UnsetType):
        return NonceRequest(length)
    _check_oid(info.type)
    if info.type != TYPE_TPM:
        return NonceRequest(length, info.type)
    if isinstance(info.reqInfo, msgspec.UnsetType):
        raise EvidenceError("a nonce request of our type lacks its reqInfo", hint=_HINT)
    return NonceRequest(length, TYPE_TPM, _activation_request(_decode(info.reqInfo, _ReqInfo, "reqInfo")))


def encode_response(response: NonceResponse) -> bytes:
    """The body of the answer."""
    info: _RespTypeInfo | msgspec.UnsetType = msgspec.UNSET
    if response.activation is not None:
        given = response.activation
        content = _RespInfo(_text(given.credential_blob), _text(given.encrypted_secret))
        info = _RespTypeInfo(TYPE_TPM, msgspec.Raw(msgspec.json.encode(content)))
    expiry = msgspec.UNSET if response.expiry is None else response.expiry
    return msgspec.json.encode(_Response(_text(response.nonce), expiry, info))


def decode_response(body: bytes) -> NonceResponse:
    """The answer in ``body``. A ``respInfo`` of another type than `TYPE_TPM` is not looked at.

    Raises:
        EvidenceError: larger than `RESPONSE_LIMIT`, not such a JSON object, with unknown members, a nonce that has none
            of the lengths, an expiry that is no number of seconds, or a ``respInfo`` of our type that is not one.
    """
    if len(body) > RESPONSE_LIMIT:
        raise EvidenceError(f"a nonce response of more than {RESPONSE_LIMIT} bytes", hint=_HINT)
    response = _decode(body, _Response, "nonce response")
    nonce = _bytes(response.nonce, limit=NONCE_LENGTHS[-1], what="nonce", empty=True)
    if nonce and len(nonce) not in NONCE_LENGTHS:
        raise EvidenceError(f"no nonce has {len(nonce)} bytes", hint=_HINT)
    expiry = None if isinstance(response.expiry, msgspec.UnsetType) else response.expiry
    if expiry is not None and not 0 <= expiry < _LIFETIME_LIMIT:
        raise EvidenceError("the nonce's expiry is no number of seconds", hint=_HINT)
    info = response.respTypeInfo
    if isinstance(info, msgspec.UnsetType):
        return NonceResponse(nonce, expiry)
    _check_oid(info.type)
    if info.type != TYPE_TPM:
        return NonceResponse(nonce, expiry)
    if isinstance(info.respInfo, msgspec.UnsetType):
        raise EvidenceError("a nonce response of our type lacks its respInfo", hint=_HINT)
    content = _decode(info.respInfo, _RespInfo, "respInfo")
    activation = ActivationResponse(
        credential_blob=_bytes(content.credentialBlob, limit=_BLOB_LIMIT, what="credentialBlob"),
        encrypted_secret=_bytes(content.encryptedSecret, limit=_BLOB_LIMIT, what="encryptedSecret"),
    )
    return NonceResponse(nonce, expiry, activation)


def _activation_request(content: _ReqInfo) -> ActivationRequest:
    if content.ekCertificate is None and content.ekPublic is None:
        raise EvidenceError("a nonce request of our type names no endorsement key", hint=_HINT)
    if len(content.ekChain) > CHAIN_LIMIT:
        raise EvidenceError(f"more than {CHAIN_LIMIT} certificates above the EK certificate", hint=_HINT)
    certificate, public = content.ekCertificate, content.ekPublic
    return ActivationRequest(
        ak_public=_bytes(content.akPublic, limit=PUBLIC_LIMIT, what="akPublic"),
        ek_certificate=None
        if certificate is None
        else _bytes(certificate, limit=CERTIFICATE_LIMIT, what="ekCertificate"),
        ek_public=None if public is None else _bytes(public, limit=PUBLIC_LIMIT, what="ekPublic"),
        ek_chain=tuple(_bytes(der, limit=CERTIFICATE_LIMIT, what="ekChain") for der in content.ekChain),
    )


def _decode(data: bytes | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EvidenceError(f"malformed {what}", hint=_HINT) from error


def _check_oid(text: str) -> None:
    if not _OID.fullmatch(text):
        raise EvidenceError("the type is no object identifier", hint=_HINT)


def _text(data: bytes) -> str:
    """Unpadded base64url: RFC 4648, 5."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str, *, limit: int, what: str, empty: bool = False) -> bytes:
    """The bytes in unpadded base64url, and only in the one form that `_text` writes."""
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1 or len(text) * 3 // 4 > limit or not (text or empty):
        raise EvidenceError(f"{what} is no base64url of at most {limit} bytes", hint=_HINT)
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _text(data) != text:
        raise EvidenceError(f"{what} is no base64url", hint=_HINT)
    return data
