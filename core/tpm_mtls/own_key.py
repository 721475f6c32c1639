"""The certificate and the private key of a TLS context: loaded, loaded again, asked why they do not sign."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from tpm_mtls.errors import (
    AuthorizationError,
    CertificateMismatchError,
    CredentialError,
    HandleNotFoundError,
    KeyGoneError,
    OpensslError,
    TpmMtlsError,
    TpmUnavailableError,
)
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.openssl import certificates, contexts, keys, provider
from tpm_mtls.response_codes import describe, tpm_error
from tpm_mtls.tcti import resolve_tcti

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from datetime import datetime

    from tpm_mtls.authorization import Secret
    from tpm_mtls.identity import Identity
    from tpm_mtls.openssl.certificates import Chain
    from tpm_mtls.openssl.keys import LoadedKey
    from tpm_mtls.openssl.provider import TpmConnection

_OWN_SIGNATURE_FAILED = {"EVP_LIB", "INTERNAL_ERROR"}
"""What OpenSSL says when it could not sign: all that is left of the provider's error by then."""

_SIGNATURE_DISLIKED = {"SSLV3_ALERT_DECRYPT_ERROR", "TLSV1_ALERT_DECRYPT_ERROR"}
"""What the peer says to a signature that another key made."""


@dataclass(frozen=True)
class Source:
    """Where certificate and key come from, now and at each reload.

    Attributes:
        identity: key reference and certificate file.
        tcti: where the TPM is, as the caller gave it.
        authorization: the key's authorization value, or the passphrase of an encrypted software key.
        clock: the present time, for the certificate's validity.
    """

    identity: Identity
    tcti: str | None
    authorization: Secret | None
    clock: Callable[[], datetime]


class OwnKey:
    """Certificate and key inside an ``SSL_CTX``; not to be used after that is freed.

    Attributes:
        guard: held while the ``SSL_CTX`` changes, and to be held while connections are made from it.
    """

    def __init__(self, ssl_ctx: int, source: Source) -> None:
        self.guard = threading.RLock()
        self._ssl_ctx = ssl_ctx
        self._source = source
        self._connection: TpmConnection | None = None
        self._loaded = False
        self._of_parent = False
        self._handshakes = 0
        self._last_gone: KeyGoneError | None = None

    @property
    def one_thread_only(self) -> bool:
        """Whether no two handshakes may sign at the same time (a provider older than 1.3)."""
        return self._connection is not None and self._connection.one_thread_only

    def load(self) -> None:
        """Reads certificate and key, and installs both or neither.

        A TPM key takes 3 commands; when it is loaded already, 3 more to see whether it is still there.

        Raises:
            TpmMtlsError: why not; what was there before stays in use.
        """
        with self.guard:
            # what is no longer in the TPM must not be flushed: something else may have its handle by now
            abandon = self._of_parent or (self._loaded and self.diagnose() is not None)
            self._load(abandon=abandon)

    def diagnose(self) -> TpmMtlsError | None:
        """Why the key does not sign right now, by a test signature (3 TPM commands); none if it does.

        Returns:
            `KeyGoneError` when the TPM restarted since the key was loaded, or the TPM's other answer; always none for
            a software key.
        """
        self.ensure_own()
        with self.guard:
            if self._connection is None:
                return None
            public, private = contexts.key_pair(self._ssl_ctx)
            try:
                signature = keys.sign_test_message(private, self._connection.libctx, self._signing_error)
            except TpmMtlsError as error:
                return error
            if keys.verify_test_message(public, signature):
                return None
        return self._gone("another one is in its place")

    def ensure_own(self) -> None:
        """In a forked child: loads the key anew, over a connection of its own.

        Raises:
            TpmMtlsError: as `load`.
        """
        if self._of_parent:
            with self.guard:
                if self._of_parent:
                    self._load(abandon=True)

    def explain(self, error: ssl.SSLError) -> NoReturn:
        """Raises a handshake's ``error``, its cause a `TpmMtlsError` if the own key is to blame.

        A key that is gone has been loaded again by then. Only failures of the own signature cost TPM commands: a peer
        cannot make this one busy with handshakes that it breaks off.
        """
        own = error.reason in _OWN_SIGNATURE_FAILED
        if self._connection is None or not (own or error.reason in _SIGNATURE_DISLIKED):
            raise error
        with self.guard:
            cause = self.diagnose()
            if isinstance(cause, KeyGoneError):
                self._last_gone = cause
                cause = self._load_again(cause)
            elif cause is None and own:
                cause = self._last_gone  # another thread has loaded it again in the meantime
        if cause is not None:
            error.add_note(str(cause))
        raise error from cause

    def begin_handshake(self) -> None:
        """Counts the handshakes under way: `release` lets them finish."""
        with self.guard:
            self._handshakes += 1

    def end_handshake(self) -> None:
        """The counterpart of `begin_handshake`."""
        with self.guard:
            self._handshakes -= 1

    def release(self) -> None:
        """At the interpreter's exit: removes the key from the TPM, unless it is persistent or still signing."""
        with self.guard:
            temporary = self._connection is not None and not isinstance(self._source.identity.key, PersistentHandle)
            if temporary and not self._of_parent and not self._handshakes:
                contexts.empty_key(self._ssl_ctx)

    def after_fork(self) -> None:
        """In a forked child: the parent's key must never be flushed from here, and no lock be waited for."""
        self.guard = threading.RLock()
        self._handshakes = 0
        if self._connection is not None:
            contexts.abandon_key(self._ssl_ctx)
            self._of_parent = True

    def _load_again(self, gone: KeyGoneError) -> TpmMtlsError:
        try:
            self._load(abandon=True)
        except TpmMtlsError as failure:
            failure.__cause__ = gone
            return failure
        return gone

    def _load(self, *, abandon: bool) -> None:
        path = self._source.identity.certificate
        with certificates.read_chain(path) as chain:
            certificates.check_validity(path, chain.not_before, chain.not_after, now=self._source.clock())
            loaded, connection = self._load_key()
            with keys.freeing(loaded):
                self._check_type(loaded)
                self._check_authorization(loaded, connection)
                if abandon:
                    contexts.abandon_key(self._ssl_ctx)
                self._install(chain, loaded)
        self._connection, self._loaded, self._of_parent = connection, True, False

    def _load_key(self) -> tuple[LoadedKey, TpmConnection | None]:
        key, authorization = self._source.identity.key, self._source.authorization
        if isinstance(key, KeyFile) and not key.is_tss2():
            return keys.load_software_key(key, authorization), None
        tcti = resolve_tcti(self._source.tcti)
        connection = provider.connect(tcti)
        try:
            return keys.load_tpm_key(key, connection, authorization), connection
        except TpmUnavailableError:
            # a resource manager that was restarted has closed the old connection
            connection = provider.connect(tcti, instead_of=connection)
            return keys.load_tpm_key(key, connection, authorization), connection

    def _check_type(self, loaded: LoadedKey) -> None:
        if self._loaded and contexts.key_type(self._ssl_ctx) != keys.key_type(loaded.pkey):
            # an SSL_CTX has one place per type, and no way to empty one
            raise CredentialError(
                f"the key {self._source.identity.key} is of another type than the one it replaces",
                hint="restart the program, or make a new context",
            )

    def _check_authorization(self, loaded: LoadedKey, connection: TpmConnection | None) -> None:
        if loaded.asked and connection is not None:
            keys.sign_test_message(loaded.pkey, connection.libctx, self._signing_error)

    def _install(self, chain: Chain, loaded: LoadedKey) -> None:
        if not contexts.use(self._ssl_ctx, chain.leaf, chain.issuers, loaded.pkey):
            identity = self._source.identity
            raise CertificateMismatchError(
                f"the certificate {identity.certificate} does not belong to the key {identity.key}",
                hint="give the certificate that was issued for this key, or enroll again",
            )

    def _signing_error(self, rc: int | None, text: str) -> TpmMtlsError:
        key = self._source.identity.key
        if rc is None:
            return OpensslError(
                f"the key {key} does not sign: {text}", hint="try it with openssl: tpm-mtls openssl-env --help"
            )
        error = tpm_error(rc, doing=f"sign with the key {key}", tcti=resolve_tcti(self._source.tcti))
        if isinstance(error, HandleNotFoundError):
            return self._gone(describe(rc), rc)
        if isinstance(error, AuthorizationError) and self._source.authorization is None:
            return AuthorizationError(
                f"the key {key} needs an authorization value ({describe(rc)})", hint=error.hint, rc=rc
            )
        return error

    def _gone(self, why: str, rc: int = 0) -> KeyGoneError:
        return KeyGoneError(
            f"the key {self._source.identity.key} was loaded and is no longer in the TPM ({why})",
            hint="load it again; programs that use the client do so by themselves",
            rc=rc,
        )
