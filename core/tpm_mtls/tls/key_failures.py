"""Why an own key did not sign or load: what OpenSSL, the peer and the TPM say, put into the project's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.errors import (
    AuthorizationError,
    CertificateMismatchError,
    CertificateNotYetValidError,
    CredentialError,
    HandleNotFoundError,
    KeyGoneError,
    OpensslError,
    TpmMemoryError,
    TpmMtlsError,
    TpmUnavailableError,
)
from tpm_mtls.response_codes import describe, naming_key, tpm_error

if TYPE_CHECKING:
    import ssl

    from tpm_mtls.identity import Identity
    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls.tls.key_source import Source

LOST = (KeyGoneError, TpmUnavailableError)
"""What loading the key again may cure."""

PASSING = (CertificateNotYetValidError, TpmUnavailableError, TpmMemoryError)
"""What hinders loading and passes without a change of the files. A wrong authorization value is not among it: trying
that again and again would lock the TPM."""

_OWN_FAILURES = {"INTERNAL_ERROR", "NO_SUITABLE_SIGNATURE_ALGORITHM", "NO_SHARED_CIPHER"}
"""What OpenSSL says when it could not sign, or not even begin to; ``EVP lib`` has no name in Python's table."""

_PEER_COMPLAINTS = {
    "SSLV3_ALERT_DECRYPT_ERROR",  # a signature of another key
    "TLSV1_ALERT_DECRYPT_ERROR",  # the same in another version's words
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",  # a client without a usable key sends no certificate, and says nothing
    "SSLV3_ALERT_HANDSHAKE_FAILURE",  # the same in TLS 1.2
}
"""What the peer says when the own key may be to blame."""

_BAD_OBJECT = 0x70018
"""TSS2_ESYS_RC_BAD_TR: the ESAPI has dropped the object, because loading the same handle again found nothing there."""


def is_own(error: ssl.SSLError) -> bool:
    """Whether ``error`` says that this side did not sign."""
    return error.reason in _OWN_FAILURES or "EVP lib" in str(error)


def may_be_own(error: ssl.SSLError) -> bool:
    """Whether the own key can be to blame for ``error``."""
    return is_own(error) or error.reason in _PEER_COMPLAINTS


def signing_error(source: Source, tcti: str, rc: int | None, text: str) -> TpmMtlsError:
    """Why the key of ``source`` did not sign.

    Args:
        source: of the key.
        tcti: by which it is used.
        rc: the TPM's response code, if there was one.
        text: what OpenSSL says.
    """
    key = source.identity.key
    if rc is None:
        return OpensslError(
            f"the key {key} does not sign: {text}", hint="try it with openssl: tpm-mtls openssl-env --help"
        )
    error = tpm_error(rc, doing=f"sign with the key {key}", tcti=tcti)
    if isinstance(error, HandleNotFoundError) or rc == _BAD_OBJECT:
        return gone(key, describe(rc), rc)
    if isinstance(error, AuthorizationError) and source.authorization is None:
        return AuthorizationError(
            f"the key {key} needs an authorization value ({describe(rc)})", hint=error.hint, rc=rc
        )
    error.hint = naming_key(error.hint, key)
    return error


def gone(key: KeyReference, why: str, rc: int = 0) -> KeyGoneError:
    """That the loaded ``key`` is gone."""
    return KeyGoneError(
        f"the key {key} that was loaded is gone ({why})",
        hint="load it again; programs that use the client do so by themselves",
        rc=rc,
    )


def other_type(key: KeyReference) -> CredentialError:
    """That ``key`` cannot take the place of the loaded one."""
    return CredentialError(
        f"the key {key} is of another type than the one it replaces", hint="restart the program, or make a new context"
    )


def mismatch(identity: Identity) -> CertificateMismatchError:
    """That certificate and key of ``identity`` do not belong together."""
    return CertificateMismatchError(
        f"the certificate {identity.certificate} does not belong to the key {identity.key}",
        hint="give the certificate that was issued for this key, or enroll again",
    )


def bare(error: TpmMtlsError) -> TpmMtlsError:
    """Without its way here, in which a TLS socket and so its context and the key would live on."""
    error.__context__ = None
    return error.with_traceback(None)
