"""What a person wants to know of a certificate. Nothing is verified here.

This is the one module of the client that imports ``cryptography``, and only `tpm_mtls_client.check` uses it: making a
connection does without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509

from tpm_mtls.certificates import UNREADABLE
from tpm_mtls_client.text import one_line

if TYPE_CHECKING:
    from datetime import datetime

_LIMIT = 200  # characters of a name shown


@dataclass(frozen=True)
class CertificateFacts:
    """Facts as text.

    Attributes:
        subject: distinguished name as in RFC 4514.
        issuer: the same of the issuer.
        names: DNS names and IP addresses of the subjectAltName.
        not_before: begin of its validity, ISO 8601 in UTC.
        not_after: its end.
        serial: serial number, hexadecimal.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: str
    not_after: str
    serial: str

    def __str__(self) -> str:
        """One line."""
        names = f", for {', '.join(self.names)}" if self.names else ""
        return f"{self.subject}{names}, valid {self.not_before} to {self.not_after}, issued by {self.issuer}"


def certificate_facts(certificate: x509.Certificate) -> CertificateFacts:
    """The facts of ``certificate``.

    Raises:
        ValueError: a part of it cannot be read.
    """
    return CertificateFacts(
        subject=one_line(certificate.subject.rfc4514_string(), _LIMIT) or "(no subject)",
        issuer=one_line(certificate.issuer.rfc4514_string(), _LIMIT) or "(no issuer)",
        names=_names(certificate),
        not_before=_date(certificate.not_valid_before_utc),
        not_after=_date(certificate.not_valid_after_utc),
        serial=f"{certificate.serial_number:x}",
    )


def chain_facts(chain: list[bytes]) -> list[CertificateFacts]:
    """The facts of DER certificates in their order; one that cannot be read is left out."""
    facts = []
    for data in chain:
        try:
            facts.append(certificate_facts(x509.load_der_x509_certificate(data)))
        except UNREADABLE:
            continue
    return facts


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    found = san.get_values_for_type(x509.DNSName) + [str(ip) for ip in san.get_values_for_type(x509.IPAddress)]
    return tuple(one_line(name, _LIMIT) for name in found)


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
