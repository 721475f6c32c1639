"""TLS contexts whose private key is any key reference: in a TPM, or in a software PEM file.

TLS 1.3, or 1.2 on request with forward secrecy and authenticated encryption only. The peer's chain and, on the client's
side, its name are always verified, against the identity's trust file and nothing else.
"""

from __future__ import annotations

import enum
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tpm_mtls.errors import OpensslError, UsageError
from tpm_mtls.openssl import contexts
from tpm_mtls.tls.identity_context import IdentityContext
from tpm_mtls.tls.key_source import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity

__all__ = ["ClientCertificates", "IdentityContext", "client_context", "server_context", "trust_context", "utc_now"]

GROUPS = "X25519:P-256:P-384"
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 suites, RFC 9325 section 4.2; those of TLS 1.3 are all of this kind."""


class ClientCertificates(enum.Enum):
    """What a server wants of its clients."""

    REQUIRED = ssl.CERT_REQUIRED
    OPTIONAL = ssl.CERT_OPTIONAL
    NONE = ssl.CERT_NONE


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


def client_context(
    identity: Identity,
    *,
    tcti: str | None = None,
    authorization: Secret | None = None,
    relay: RelayUse | None = None,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    clock: Callable[[], datetime] = utc_now,
) -> IdentityContext:
    """A context for connections to servers, authenticated with the identity's key and certificate.

    Args:
        identity: key, certificate chain and trust anchors.
        tcti: where the TPM is; see `tpm_mtls.tcti.resolve_tcti`. Not looked at for a software key.
        authorization: the key's authorization value, or the passphrase of an encrypted software key.
        relay: whether a TPM key is used through the relay: ``auto`` (where it has a policy), ``always`` or ``never``;
            what the environment or the configuration says by default, and else ``auto``. See `tpm_mtls.relay`.
        minimum_version: TLS 1.3, or 1.2.
        clock: the present time, for the own certificate's validity.

    Raises:
        TpmUnavailableError, TpmRefusedError: no TPM, or what it answered, by class.
        CredentialError: key, certificate or trust file are damaged, do not belong together or are out of date.
        OpensslError: the provider is missing, too old, or Python's OpenSSL cannot be reached.
        StorageError: a file cannot be read.
        UsageError: another TLS version, or a passphrase is missing.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity.trust, ssl.CERT_REQUIRED, minimum_version)
    context.load_own_key(Source(identity, tcti, authorization, clock, relay))
    return context


def server_context(  # noqa: PLR0913 - by name
    identity: Identity,
    *,
    tcti: str | None = None,
    authorization: Secret | None = None,
    relay: RelayUse | None = None,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    client_certificates: ClientCertificates = ClientCertificates.REQUIRED,
    crl: Path | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> IdentityContext:
    """A context for connections from clients; ``identity.trust`` verifies them and is not read without client
    certificates.

    ``crl`` is a file with the lists of revoked certificates of all CAs of the clients' chains, the root's included: at
    most 4 MiB, all in PEM or all in DER form, one after the other. A client is refused if its certificate or a CA's
    above it was revoked, and gets a session resumed only as long as the file's content is the same. When a list has
    ended, or the file is missing, damaged or replaced by an older one, no client certificate is accepted until a good
    file is there, which is taken without a restart (`IdentityContext.revocation_problem`). Connections go on, those
    included whose handshake has begun. Without ``crl``, whether a certificate was revoked is the caller's to check.

    Args and errors: as `client_context`, and:

    Raises:
        CredentialError: the lists are damaged, a trusted CA's is missing or wrongly signed, or one has ended.
        StorageError: their file cannot be read.
        UsageError: lists, but no client certificates.
    """  # noqa: D205 - one sentence
    wanted = client_certificates is not ClientCertificates.NONE
    trust = identity.trust if wanted else None
    if crl is not None and not wanted:
        raise UsageError(
            "a list of revoked certificates is of no use without client certificates",
            hint="ask for them (client_certificates), or leave crl out",
        )
    context = _context(ssl.PROTOCOL_TLS_SERVER, trust, client_certificates.value, minimum_version)
    if crl is not None:
        context.load_revocation_lists(crl, clock=clock)
    context.load_own_key(Source(identity, tcti, authorization, clock, relay))
    return context


def trust_context(trust: Path, *, minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> IdentityContext:
    """A context for connections to servers without a certificate of one's own, as before the first enrollment.

    Raises:
        PemError: the trust file has no certificate, or a damaged one.
        StorageError: it cannot be read.
        UsageError: another TLS version than 1.3 or 1.2.
        OpensslError: OpenSSL has no default provider, and so no cipher.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, trust, ssl.CERT_REQUIRED, minimum_version)


def _context(
    protocol: int, trust: Path | None, verify_mode: ssl.VerifyMode, minimum_version: ssl.TLSVersion
) -> IdentityContext:
    if minimum_version not in {ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3}:
        raise UsageError(f"TLS version {minimum_version.name} is not offered", hint="use 1.3, or 1.2 for old peers")
    try:
        context = IdentityContext(protocol, trust=trust, verify_mode=verify_mode)
    except ssl.SSLError as error:  # without the default provider there is not even a cipher
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise OpensslError(
            f"no TLS connection can be made with this OpenSSL: {reason}",
            hint='does its configuration activate the default provider? unset OPENSSL_CONF, or: eval "$(tpm-mtls '
            'openssl-env)"',
        ) from error
    context.minimum_version = minimum_version
    context.set_ciphers(CIPHERS_1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    contexts.set_groups(context, GROUPS)
    return context
