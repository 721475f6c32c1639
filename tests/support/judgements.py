"""A device in software that shows quotes to a backend: good until something of it is replaced."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from support.attestation import number
from support.quotes import NONCE, evidence_of, hexadecimal, made_quote, software_key, some_values
from tpm_mtls.device_identity import TpmIdentity
from tpm_mtls_server.attestation import AttestationTrust, Facts, IssuedNonce, Learn, verify
from tpm_mtls_server.revocation import read_crls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.attestation import AttestationKey
    from support.device_ca import DeviceCa
    from support.quotes import Values
    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls_server.attestation import Judgement
    from tpm_mtls_server.revocation import RevocationLists

DEVICE = "sensor-17"
NOW = datetime.now(UTC).replace(microsecond=0)
LIFETIME = timedelta(seconds=60)
TPM = TpmIdentity(bytes(range(32)))
OTHER_TPM = TpmIdentity(bytes(32))


def clock_info(milliseconds: int = 1234, resets: int = 5, restarts: int = 6, *, safe: bool = True) -> bytes:
    """TPMS_CLOCK_INFO."""
    return number(milliseconds, 8) + number(resets, 4) + number(restarts, 4) + bytes([safe])


@dataclass(frozen=True)
class Case:
    """A quote, and what the backend knows."""

    evidence: QuoteEvidence
    facts: Facts
    now: datetime = NOW

    def sent(self, **changes: Any) -> Case:  # noqa: ANN401 - members of the message
        """The same, with members of the message replaced."""
        return dataclasses.replace(self, evidence=msgspec.structs.replace(self.evidence, **changes))

    def known(self, **changes: Any) -> Case:  # noqa: ANN401 - fields
        """The same, with facts replaced."""
        return dataclasses.replace(self, facts=dataclasses.replace(self.facts, **changes))

    def judge(self) -> Judgement:
        """What the backend says."""
        return verify(self.evidence, self.facts, now=self.now)


@dataclass(frozen=True)
class Device:
    """A device whose TPM is in software, and the CA that certified its attestation key."""

    ca: DeviceCa
    ak: AttestationKey = field(default_factory=software_key)

    def trust(self) -> AttestationTrust:
        """Whom the backend trusts."""
        return AttestationTrust([self.ca.root, self.ca.issuing])

    def revocation(self, *revoked: int) -> RevocationLists:
        """A fresh CRL."""
        return read_crls(
            self.ca.crl(*revoked, this_update=NOW, next_update=NOW + timedelta(days=1)), [self.ca.root, self.ca.issuing]
        )

    def certificate(self, **changes: Any) -> bytes:  # noqa: ANN401 - arguments of the CA
        """The attestation key's certificate, DER."""
        arguments = {"public_key": self.ak.key.public_key(), "tpm": TPM} | changes
        return self.ca.certify_attestation_key(**arguments).public_bytes(Encoding.DER)

    def facts(self, **changes: Any) -> Facts:  # noqa: ANN401 - fields
        """What a backend knows about it."""
        usual = Facts(
            device=DEVICE,
            tpm=TPM,
            nonce=IssuedNonce(NONCE, DEVICE, NOW + LIFETIME),
            trust=self.trust(),
            revocation=self.revocation(),
            policy=Learn(),
        )
        return dataclasses.replace(usual, **changes)

    def evidence(
        self,
        values: Values | None = None,
        *,
        attest: Mapping[str, Any] | None = None,
        selection: Mapping[str, range] | None = None,
        **members: Any,  # noqa: ANN401 - members of the message
    ) -> QuoteEvidence:
        """A quote of ``values``; members of the message may be replaced."""
        values = values or some_values()
        chosen = selection or {"sha256": range(16)}
        data, signature = made_quote(self.ak, values, attest=attest, selection=chosen)
        usual = evidence_of(data, signature, self.ak.public, values)
        return msgspec.structs.replace(usual, **({"certificate": self.certificate()} | members))

    def case(self, values: Values | None = None, **changes: Any) -> Case:  # noqa: ANN401 - of the quote
        """A quote that passes, unless ``changes`` say otherwise."""
        return Case(self.evidence(values, **changes), self.facts())


def changed_pcr(values: Values, pcr: int, bank: str = "sha256") -> Values:
    """``values`` after something was measured into ``pcr``."""
    extended = hashlib.new(bank, values[bank][pcr] + b"something else").digest()
    return {**values, bank: {**values[bank], pcr: extended}}


def with_values(evidence: QuoteEvidence, values: Values) -> QuoteEvidence:
    """``evidence`` with other PCR values beside the same quote."""
    return msgspec.structs.replace(evidence, pcrs=hexadecimal(values))
