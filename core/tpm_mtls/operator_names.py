"""Names of operators, the people who run the backend: what they may look like, and which one a certificate is for."""

from __future__ import annotations

import re

from cryptography import x509

from tpm_mtls.certificates import read_extensions
from tpm_mtls.errors import CredentialError, UsageError

OPERATOR_NAME_LIMIT = 64

# a dot-atom (RFC 5322, 3.2.3) without the characters that a shell or a log would mistake, and a host name of at least
# two labels (RFC 1123, 2.1); all in lower case, so that nobody is two people
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"[a-z0-9_+-]+(\.[a-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+")


def check_operator_name(name: str) -> str:
    """Returns ``name`` if it can name an operator: a lower-case mail address of at most 64 characters.

    64 is what a subject's common name takes (RFC 5280, appendix A: ub-common-name).

    Raises:
        UsageError: it cannot.
    """
    if not _is_name(name):
        raise UsageError(
            f"not an operator's name: {name[:80]!r}",
            hint=f"a mail address in lower case, at most {OPERATOR_NAME_LIMIT} characters, like alice@example.com",
        )
    return name


def operator_name(certificate: x509.Certificate) -> str:
    """The operator that ``certificate`` is for: its one alternative name, an rfc822Name. Nothing is verified.

    Raises:
        CredentialError: it has another number of names than one, a name of another kind, or one that names no operator;
            or its extensions are malformed.
    """
    hint = "is that an operator's certificate of our CA? see: tpm-mtls pki show"
    try:
        names = list(read_extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound as error:
        raise CredentialError("the certificate names no operator", hint=hint) from error
    found = [name.value for name in names if isinstance(name, x509.RFC822Name)]
    if len(names) != 1 or len(found) != 1 or not _is_name(found[0]):
        raise CredentialError("the certificate names no single operator", hint=hint)
    return found[0]


def _is_name(text: str) -> bool:
    return len(text) <= OPERATOR_NAME_LIMIT and _NAME.fullmatch(text) is not None
