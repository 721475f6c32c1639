"""What was proved about the keys of certificates: kept, so that a renewal is held to it (check 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpm_mtls.evidence_checks import Residency
from tpm_mtls_pki.schema import attestations, select_by

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row
    from sqlalchemy.sql import Select

_BY_SERIAL = select_by(attestations.c.serial)
_BY_KEY = select_by(attestations.c.key_digest)
_FIXED = select_by(attestations.c.device, attestations.c.residency == Residency.FIXED.value).limit(1)
_INSERT = attestations.insert()


@dataclass(frozen=True)
class Attestation:
    """What was proved when a certificate was issued.

    Attributes:
        serial: the certificate's serial number, 40 hex digits.
        device: the device.
        key_digest: SHA-256 of the TLS key's SubjectPublicKeyInfo, hex.
        key_name: the TLS key's Name, hex.
        ak_name: the attestation key's Name, hex; empty where only its certificate was shown.
        ek_hash: the TPM: SHA-256 of its endorsement key's SubjectPublicKeyInfo, hex.
        endorsed_by: who said that the TPM is genuine.
        residency: where the TLS key lives.
    """

    serial: str
    device: str
    key_digest: str
    key_name: str
    ak_name: str
    ek_hash: str
    endorsed_by: str
    residency: Residency


def add(connection: Connection, attestation: Attestation) -> None:
    """Keeps what was proved; the certificate is in the store already."""
    values = vars(attestation) | {"residency": attestation.residency.value}
    connection.execute(_INSERT, values)


def find(connection: Connection, serial: str) -> Attestation | None:
    """What was proved for the certificate with that serial number; none if it was issued without evidence."""
    found = _select(connection, _BY_SERIAL, serial)
    return found[0] if found else None


def of_key(connection: Connection, key_digest: str) -> list[Attestation]:
    """What was ever proved about a key."""
    return _select(connection, _BY_KEY, key_digest)


def was_fixed(connection: Connection, device: str) -> bool:
    """Whether ``device`` ever had a key that was born in its TPM."""
    return bool(_select(connection, _FIXED, device))


def _select(connection: Connection, query: Select[Any], wanted: str) -> list[Attestation]:
    return [_attestation(row) for row in connection.execute(query, {"wanted": wanted})]


def _attestation(row: Row[Any]) -> Attestation:
    return Attestation(**(dict(row._mapping) | {"residency": Residency(row.residency)}))  # noqa: SLF001 - its public API
