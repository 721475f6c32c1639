"""Names of devices: what they may look like, and which one a certificate is for."""

from __future__ import annotations

import re

from cryptography import x509

from tpm_mtls.certificates import read_extensions
from tpm_mtls.device_identity import tpm_identity
from tpm_mtls.errors import CredentialError, UsageError

DEVICE_NAME_LIMIT = 64

# lower-case host names: RFC 1123, 2.1; a label has at most 63 characters, a name 253 (RFC 1035, 2.3.4)
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def check_device_name(name: str) -> str:
    """Returns ``name`` if it can name a device: a lower-case host name (RFC 1123, 2.1) of at most 64 characters.

    64 is what a subject's common name takes (RFC 5280, appendix A: ub-common-name); no wildcard, no final dot.

    Raises:
        UsageError: it cannot.
    """
    if len(name) > DEVICE_NAME_LIMIT or not _NAME.fullmatch(name):
        raise UsageError(
            f"not a device name: {name[:80]!r}",
            hint=f"lower-case letters, digits, hyphens and dots, at most {DEVICE_NAME_LIMIT}, like sensor-17.example",
        )
    return name


def device_name(certificate: x509.Certificate) -> str:
    """The device that ``certificate`` is for: its one dNSName in the subjectAltName. Nothing is verified.

    Beside it may stand the two names of its TPM (`device_identity.tpm_identity`), and nothing else.

    Raises:
        CredentialError: it has another number of dNSNames than one, no lower-case host name, or names of other kinds;
            or its extensions are malformed.
    """
    hint = "is that a device certificate of our CA? see: tpm-mtls pki show"
    try:
        names = list(read_extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound as error:
        raise CredentialError("the certificate names no device", hint=hint) from error
    devices = [name.value for name in names if isinstance(name, x509.DNSName)]
    of_tpm = 0 if tpm_identity(names) is None else 2
    if len(devices) != 1 or len(names) != 1 + of_tpm or not _NAME.fullmatch(devices[0]):
        raise CredentialError("the certificate names no single device", hint=hint)
    return devices[0]
