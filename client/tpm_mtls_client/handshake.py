"""What a handshake was like, read from its messages: for `tpm_mtls_client.check`, which explains it to a person.

Nothing here verifies anything; OpenSSL does, and it gets the same messages. CPython offers them through
``SSLContext._msg_callback``, an attribute without documentation that it has had since 3.8 (it mirrors OpenSSL's
SSL_CTX_set_msg_callback); the documented interface does not tell whether the peer asked for our certificate, which key
exchange group was used, or what the chain was when it failed.

Message layouts: RFC 8446, 4 and B.3 (TLS 1.3); RFC 5246, 7.4 and RFC 8422, 5.4 (TLS 1.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

_HANDSHAKE = 22  # content type: RFC 8446, B.1
_SERVER_HELLO, _CERTIFICATE, _SERVER_KEY_EXCHANGE, _CERTIFICATE_REQUEST, _CERTIFICATE_VERIFY = 2, 11, 12, 13, 15
_WANTED = {_SERVER_HELLO, _CERTIFICATE, _SERVER_KEY_EXCHANGE, _CERTIFICATE_REQUEST, _CERTIFICATE_VERIFY}
_HEADER = 4  # bytes: type and length of a handshake message
_KEY_SHARE, _SUPPORTED_VERSIONS = 51, 43
_NAMED_CURVE = 3  # RFC 8422, 5.4
_CHAIN_LIMIT = 10  # certificates shown; a chain has three

# IANA, TLS Supported Groups
_GROUPS = {
    23: "secp256r1",
    24: "secp384r1",
    25: "secp521r1",
    29: "x25519",
    30: "x448",
    256: "ffdhe2048",
    257: "ffdhe3072",
    4587: "SecP256r1MLKEM768",
    4588: "X25519MLKEM768",
    4589: "SecP384r1MLKEM1024",
}

# IANA, TLS SignatureScheme; in TLS 1.2 the same numbers mean a hash and a signature algorithm
_SCHEMES = {
    0x0401: "rsa_pkcs1_sha256",
    0x0501: "rsa_pkcs1_sha384",
    0x0601: "rsa_pkcs1_sha512",
    0x0403: "ecdsa_secp256r1_sha256",
    0x0503: "ecdsa_secp384r1_sha384",
    0x0603: "ecdsa_secp521r1_sha512",
    0x0804: "rsa_pss_rsae_sha256",
    0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512",
    0x0807: "ed25519",
    0x0808: "ed448",
}


@dataclass
class Handshake:
    """Listens to the handshakes of one context (see `listen`).

    Attributes:
        received: the peer's last message of each type, without its header.
        sent: ours.
    """

    received: dict[int, bytes] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)

    def hear(self, _: object, direction: str, __: object, content: int, kind: int, data: bytes) -> None:
        """CPython calls it with every message."""
        if content == _HANDSHAKE and kind in _WANTED:
            (self.received if direction == "read" else self.sent)[int(kind)] = bytes(data[_HEADER:])

    @property
    def certificate_was_requested(self) -> bool:
        """Whether the peer asked for our certificate."""
        return _CERTIFICATE_REQUEST in self.received

    @property
    def signature_scheme(self) -> str | None:
        """How our key signed; none when it did not."""
        return _name(_SCHEMES, _uint(self.sent.get(_CERTIFICATE_VERIFY, b""), 0, 2))

    @property
    def group(self) -> str | None:
        """The group of the key exchange; none when there was none, or an unusual one."""
        exchange = self.received.get(_SERVER_KEY_EXCHANGE)
        if exchange is not None:
            return _name(_GROUPS, _uint(exchange, 1, 2)) if exchange[:1] == bytes([_NAMED_CURVE]) else None
        share = _extensions(self.received.get(_SERVER_HELLO, b"")).get(_KEY_SHARE, b"")
        return _name(_GROUPS, _uint(share, 0, 2))

    @property
    def peer_chain(self) -> list[bytes]:
        """The certificates that the peer sent, DER, its own first. They are not verified."""
        message = self.received.get(_CERTIFICATE, b"")
        is_tls13 = _SUPPORTED_VERSIONS in _extensions(self.received.get(_SERVER_HELLO, b""))
        if is_tls13:
            message = message[1 + (_uint(message, 0, 1) or 0) :]  # certificate_request_context
        position = 3  # bytes of the list's length
        chain: list[bytes] = []
        while len(chain) < _CHAIN_LIMIT and (length := _uint(message, position, 3)):
            chain.append(message[position + 3 : position + 3 + length])
            position += 3 + length
            if is_tls13:
                position += 2 + (_uint(message, position, 2) or 0)  # extensions of this entry
        return chain


def listen(context: ssl.SSLContext) -> Handshake:
    """Lets a new `Handshake` hear what ``context``'s connections say from now on."""
    handshake = Handshake()
    hidden: Any = context  # the attribute is missing in the type stubs
    hidden._msg_callback = handshake.hear  # noqa: SLF001 - see the module's docstring
    return handshake


def _extensions(server_hello: bytes) -> dict[int, bytes]:
    """The extensions of a ServerHello: after version, random, session id, cipher suite and compression method."""
    position = 34 + 1 + (_uint(server_hello, 34, 1) or 0) + 2 + 1 + 2
    found = {}
    while (kind := _uint(server_hello, position, 2)) is not None:
        length = _uint(server_hello, position + 2, 2) or 0
        found[kind] = server_hello[position + 4 : position + 4 + length]
        position += 4 + length
    return found


def _uint(data: bytes, position: int, size: int) -> int | None:
    piece = data[position : position + size]
    return int.from_bytes(piece, "big") if len(piece) == size else None


def _name(names: dict[int, str], number: int | None) -> str | None:
    return None if number is None else names.get(number, f"{number:#06x}")
