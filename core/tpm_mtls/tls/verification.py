"""Why OpenSSL refuses the peer's certificate, in words: its verification codes, X509_V_ERR_* in ``x509_vfy.h``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import ssl

NOT_YET_VALID: Final = 9
HAS_EXPIRED: Final = 10

EXPLAIN: Final = "tpm-mtls client check shows both chains"

_CLOCK = "is this machine's clock right (date -u)? if it is, the peer needs a new certificate"
_TRUST = "trust the CA that issued it: --trust, or ca.cert.pem; if it does, somebody else answers there"
_NAME = f"use the name that stands in its certificate as the URL's host ({EXPLAIN})"


class Reason(NamedTuple):
    """Why a certificate is refused.

    Attributes:
        text: what is wrong with it, after its name.
        hint: what to do about it.
    """

    text: str
    hint: str


_REASONS = {
    2: Reason("its issuer is not among the trust anchors", _TRUST),
    7: Reason("its signature is wrong", "the trust anchor has the issuer's name but another key"),
    NOT_YET_VALID: Reason("it is not valid yet", _CLOCK),
    HAS_EXPIRED: Reason("it has expired", _CLOCK),
    18: Reason("it is self-signed", _TRUST),
    19: Reason("its root is not the trust anchor", _TRUST),
    20: Reason("its issuer is not among the trust anchors", _TRUST),
    21: Reason("its issuer is not among the trust anchors", _TRUST),
    23: Reason("it is revoked", "the peer needs a new certificate"),
    24: Reason("one of its issuers is no CA", "the peer must send a chain of CA certificates"),
    26: Reason(
        "it is not meant for a TLS server", "the peer needs a certificate with the extended key usage serverAuth"
    ),
    62: Reason("it is for another name", _NAME),
    64: Reason("it is for another address", _NAME),
    66: Reason("its key is too short", "the peer needs a certificate with a longer key"),
    67: Reason("an issuer's key is too short", "the peer's CA needs a longer key"),
    68: Reason("it is signed with a weak hash", "the peer needs a new certificate"),
}


def refusal_reason(error: ssl.SSLCertVerificationError) -> Reason:
    """Why the peer's certificate is refused; OpenSSL's own words stand in brackets after ours, or alone."""
    words = str(error.verify_message).rstrip(".").lower()
    reason = _REASONS.get(error.verify_code)
    if reason is None:
        return Reason(words, EXPLAIN)
    return reason._replace(text=f"{reason.text} ({words})" if words else reason.text)
