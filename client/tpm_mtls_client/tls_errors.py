"""What OpenSSL reports when TLS fails, as errors with a cause and an advice.

Alerts: RFC 8446, 6; they arrive during the handshake, or in TLS 1.3 with the first answer, when the peer looks at our
certificate only after we have finished.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from tpm_mtls.errors import HandshakeError, PeerError, PeerUntrustedError
from tpm_mtls.tls.verification import EXPLAIN, refusal_reason

_ENROLL = "enroll again: tpm-mtls keygen first-boot"


@dataclass(frozen=True)
class _Meaning:
    text: str
    hint: str


_ALERTS = {
    "CERTIFICATE_REQUIRED": _Meaning(
        "wants a client certificate and got none", "is this the identity that was meant? " + EXPLAIN
    ),
    "BAD_CERTIFICATE": _Meaning(
        "refuses our certificate: it is damaged or of a kind it does not take", EXPLAIN + "; the peer's log says more"
    ),
    "UNSUPPORTED_CERTIFICATE": _Meaning(
        "refuses our certificate: it is of a kind it does not take", "it needs the extended key usage clientAuth"
    ),
    "CERTIFICATE_REVOKED": _Meaning("refuses our certificate: it is revoked", _ENROLL),
    "CERTIFICATE_EXPIRED": _Meaning("refuses our certificate: it has expired, or the peer's clock is wrong", _ENROLL),
    "CERTIFICATE_UNKNOWN": _Meaning(
        "refuses our certificate for a reason it does not tell", "the peer's log says more; " + EXPLAIN
    ),
    "UNKNOWN_CA": _Meaning(
        "refuses our certificate: it does not trust the CA that issued it",
        "the peer must trust that CA, and our certificate file must hold the chain up to it; " + EXPLAIN,
    ),
    "ACCESS_DENIED": _Meaning("knows our certificate, and denies access", "ask the operator of the peer"),
    "DECRYPT_ERROR": _Meaning(
        "refuses our signature", "the certificate may belong to another key; the peer's log says more"
    ),
    "PROTOCOL_VERSION": _Meaning(
        "does not speak the TLS versions that are allowed here", "if it is an old server, allow TLS 1.2: --tls12"
    ),
    "HANDSHAKE_FAILURE": _Meaning(
        "finds nothing in common with us (cipher, group, signature algorithm), or wants another client certificate",
        "its log says more; if it is an old server, allow TLS 1.2: --tls12",
    ),
    "INSUFFICIENT_SECURITY": _Meaning("wants stronger algorithms", "its log says which"),
    "UNRECOGNIZED_NAME": _Meaning("does not know that host name", "use the name that it serves"),
    "INTERNAL_ERROR": _Meaning("has a problem of its own", "its log says more"),
    "NO_APPLICATION_PROTOCOL": _Meaning("does not speak HTTP/1.1", "is it an HTTPS server?"),
}

_LOCAL = {
    "WRONG_VERSION_NUMBER": _Meaning("does not speak TLS on that port", "is it the HTTPS port?"),
    "RECORD_LAYER_FAILURE": _Meaning("does not speak TLS on that port", "is it the HTTPS port?"),
    "PACKET_LENGTH_TOO_LONG": _Meaning("does not speak TLS on that port", "is it the HTTPS port?"),
    "HTTP_REQUEST": _Meaning("does not speak TLS on that port", "is it the HTTPS port?"),
    "UNSUPPORTED_PROTOCOL": _ALERTS["PROTOCOL_VERSION"],
    "UNEXPECTED_EOF_WHILE_READING": _Meaning(
        "closed the connection in the middle of TLS", "is it a TLS server? its log may say why"
    ),
    "NO_SUITABLE_SIGNATURE_ALGORITHM": _Meaning(
        "takes no signature algorithm that our key has", "a key of another algorithm is needed (ecc-p256 is common)"
    ),
}

_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13|SSL/TLS)_(?:ALERT_)?([A-Z_]+)")


def alert_name(error: ssl.SSLError) -> str | None:
    """The alert that the peer sent, such as ``UNKNOWN_CA``; none when the error is another one."""
    match = _ALERT.fullmatch(reason(error))
    return match[1] if match else None


def reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason as one word in capitals, such as ``WRONG_VERSION_NUMBER``; ``UNKNOWN`` when it gives none.

    CPython knows the names of many reasons only; the others stand as text in the message.
    """
    known = getattr(error, "reason", None)  # only OpenSSL's own errors have it
    if known:
        return str(known).upper().replace(" ", "_")
    text = re.sub(r"\[[^]]*\]|\([^)]*\)", "", str(error.args[-1] if error.args else "")).strip()
    return re.sub(r"[^A-Z0-9/]+", "_", text.upper()) or "UNKNOWN"


def tls_error(error: ssl.SSLError, peer: str) -> PeerError:
    """What ``error`` means, for a person; ``peer`` is host and port.

    Returns:
        `PeerUntrustedError` when its chain or name does not verify, else `HandshakeError`.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, peer)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _handshake(peer, _LOCAL["UNEXPECTED_EOF_WHILE_READING"])
    alert = alert_name(error)
    if alert is not None:
        words = alert.lower().replace("_", " ")
        return _handshake(
            peer, _ALERTS.get(alert, _Meaning(f"refused: {words}", "its log may say more")), f" (alert {words})"
        )
    name = reason(error)
    words = name.lower().replace("_", " ")
    meaning = _LOCAL.get(name, _Meaning(f"and we cannot agree in TLS: {words}", EXPLAIN))
    return _handshake(peer, meaning)


def _handshake(peer: str, meaning: _Meaning, detail: str = "") -> HandshakeError:
    return HandshakeError(f"{peer} {meaning.text}{detail}", hint=meaning.hint, host=peer)


def _untrusted(error: ssl.SSLCertVerificationError, peer: str) -> PeerUntrustedError:
    found = refusal_reason(error)
    return PeerUntrustedError(f"the certificate of {peer} is refused: {found.text}", hint=found.hint, host=peer)
