"""A device that shows a running backend what it booted: TLS with a software key, and a TPM in software."""

from __future__ import annotations

import base64
import itertools
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support.judgements import TPM, clock_info
from support.quotes import evidence_of, made_quote, software_key, some_values
from tpm_mtls.attestation.messages import QuoteEvidence, encode

if TYPE_CHECKING:
    from support.device_ca import DeviceCa
    from support.https import Answer, HttpsClient
    from support.quotes import Values
    from tpm_mtls.device_identity import TpmIdentity
    from tpm_mtls.identity import Identity

HEALTHY = b'{"time": 1, "checks": [{"name": "wrap", "outcome": "passed", "seconds": 0.1}]}'
UNHEALTHY = b'{"time": 2, "failures": [{"kind": "EncFailure", "reason": "it did not come back", "hint": "look"}]}'


class AttestingDevice:
    """A device of ``ca``, whose attestation key has a certificate.

    Attributes:
        name: its name.
        identity: for TLS; its certificate names the TPM.
        values: what its PCRs have.
    """

    def __init__(self, ca: DeviceCa, name: str = "sensor-17", *, tpm: TpmIdentity = TPM) -> None:
        self.name = name
        self.identity: Identity = ca.device(name, names=[x509.DNSName(name), *tpm.names()])
        self.values: Values = some_values()
        self.ak = software_key()
        certificate = ca.certify_attestation_key(self.ak.key.public_key(), tpm, name)
        self._certificate: bytes | None = certificate.public_bytes(Encoding.DER)
        self._time = itertools.count(1000, 1000)

    def without_certificate(self) -> AttestingDevice:
        """The same, but nothing vouches for its attestation key."""
        self._certificate = None
        return self

    def evidence(self, answering: bytes, *, clock: bytes | None = None, **members: Any) -> bytes:  # noqa: ANN401 - of the message
        """The body that answers a nonce; the clock rises with each."""
        info = clock_info(next(self._time)) if clock is None else clock
        data, signature = made_quote(self.ak, self.values, attest={"extra": answering, "clock": info})
        made = evidence_of(data, signature, self.ak.public, self.values, nonce=answering)
        facts = {name: getattr(made, name) for name in made.__struct_fields__}
        return encode(QuoteEvidence(**(facts | {"certificate": self._certificate} | members)))

    def attest(self, client: HttpsClient, **members: Any) -> Answer:  # noqa: ANN401 - of the message
        """Asks for a nonce and answers it."""
        return client.post("/attestation", self.evidence(ask_nonce(client), **members))


def ask_nonce(client: HttpsClient) -> bytes:
    """A nonce from the backend."""
    answer = client.request("POST", "/attestation/nonce")
    assert (answer.status, answer.body["lifetime"]) == (200, 300)
    nonce = base64.b64decode(answer.body["nonce"], validate=True)
    assert len(nonce) == 32
    return nonce
