"""The certificate and the private key of a TLS context: loaded, loaded again, asked why they do not sign."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from tpm_mtls.errors import (
    AuthorizationError,
    CertificateMismatchError,
    CredentialError,
    HandleNotFoundError,
    KeyGoneError,
    OpensslError,
    TpmMtlsError,
    TpmRefusedError,
    TpmUnavailableError,
)
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.openssl import certificates, contexts, keys, provider
from tpm_mtls.relay import key_tcti, policy_folders
from tpm_mtls.relay_codes import KEY
from tpm_mtls.response_codes import describe, tpm_error
from tpm_mtls.tls import process_hooks

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from datetime import datetime

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity
    from tpm_mtls.openssl.certificates import Chain
    from tpm_mtls.openssl.keys import LoadedKey
    from tpm_mtls.openssl.provider import TpmConnection

_log = logging.getLogger(__name__)

_OWN_FAILURES = {"INTERNAL_ERROR", "NO_SUITABLE_SIGNATURE_ALGORITHM", "NO_SHARED_CIPHER"}
"""What OpenSSL says when it could not sign, or not even begin to; ``EVP lib`` has no name in Python's table."""

_PEER_COMPLAINTS = {
    "SSLV3_ALERT_DECRYPT_ERROR",  # a signature of another key
    "TLSV1_ALERT_DECRYPT_ERROR",  # the same in another version's words
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",  # a client without a usable key sends no certificate, and says nothing
    "SSLV3_ALERT_HANDSHAKE_FAILURE",  # the same in TLS 1.2
}
"""What the peer says when the own key may be to blame."""

_LOST = (KeyGoneError, TpmUnavailableError)
"""What loading the key again may cure."""

_PATIENCE = 5.0  # seconds at the interpreter's exit; one TPM command takes less

_OTHER_NAME = 0x70001
"""TSS2_ESYS_RC_GENERAL_FAILURE: it knows another key at this handle (Esys_TR_FromTPMPublic_Finish, esys_tr.c)."""

_BAD_OBJECT = 0x70018
"""TSS2_ESYS_RC_BAD_TR: the ESAPI has dropped the object, because loading the same handle again found nothing there."""


@dataclass(frozen=True)
class Source:
    """Where certificate and key come from, now and at each reload.

    Attributes:
        identity: key reference and certificate file.
        tcti: where the TPM is, as the caller gave it.
        authorization: the key's authorization value, or the passphrase of an encrypted software key.
        clock: the present time, for the certificate's validity.
        relay: whether a TPM key is used through the relay, as the caller said; see `tpm_mtls.relay.key_tcti`.
    """

    identity: Identity
    tcti: str | None
    authorization: Secret | None
    clock: Callable[[], datetime]
    relay: RelayUse | None = None


class OwnKey:
    """Certificate and key inside an ``SSL_CTX``; not to be used after that is freed.

    Attributes:
        guard: held while the ``SSL_CTX`` changes, and to be held while connections are made from it; never while
            the TPM works.
        generation: counts how often certificate and key were loaded.
    """

    def __init__(self, ssl_ctx: int, source: Source) -> None:
        self.guard = threading.RLock()
        self.generation = 0
        self._changing = threading.RLock()  # held while certificate and key are loaded, or looked at
        self._ssl_ctx = ssl_ctx
        self._source = source
        self._connection: TpmConnection | None = None
        self._loaded = False
        self._of_parent = False
        self._handshakes = 0
        self._last_gone: KeyGoneError | None = None

    @property
    def tcti(self) -> str | None:
        """The TCTI string by which the key is used, of a relay maybe; none for a software key."""
        return self._connection.tcti if self._connection else None

    @property
    def turn(self) -> AbstractContextManager[object] | None:
        """To be held at each step of a handshake; none for a provider that does not need it."""
        return self._connection.turn if self._connection else None

    def load(self) -> None:
        """Reads certificate and key, and installs both or neither.

        A TPM key takes 3 commands; when it is loaded already, 3 more to see whether it is still there.

        Raises:
            TpmMtlsError: why not; what was there before stays in use.
        """
        with self._changing:
            # what is no longer in the TPM must not be flushed: something else may have its handle by now
            abandon = self._of_parent or (self._loaded and isinstance(self.diagnose(), _LOST))
            self._load(abandon=abandon)

    def diagnose(self) -> TpmMtlsError | None:
        """Why the key does not sign right now, by a test signature (3 TPM commands); none if it does.

        Returns:
            `KeyGoneError` when the TPM restarted since the key was loaded, or the TPM's other answer; always none for
            a software key.
        """
        self.ensure_own()
        with self._changing:
            if self._connection is None:
                return None
            public, private = contexts.key_pair(self._ssl_ctx)
            try:
                signature = self._sign(private, self._connection)
            except TpmMtlsError as error:
                return _bare(error)
            if keys.verify_test_message(public, signature):
                return None
        return self._gone("another one is in its place")

    def ensure_own(self) -> None:
        """In a forked child: loads the key anew, over a connection of its own.

        Raises:
            TpmMtlsError: as `load`.
        """
        if self._of_parent:
            with self._changing:
                if self._of_parent:
                    self._load(abandon=True)

    def may_explain(self, error: ssl.SSLError) -> bool:
        """Whether `explain` would ask the TPM: only for failures that the own key can cause.

        A test signature for each handshake that a port scanner breaks off would keep the TPM busy.
        """
        return self._connection is not None and (_is_own_failure(error) or error.reason in _PEER_COMPLAINTS)

    def explain(self, error: ssl.SSLError) -> NoReturn:
        """Raises the ``error`` of a handshake, its cause a `TpmMtlsError` if the own key is to blame.

        A key that is gone has been loaded again by then.
        """
        if not self.may_explain(error):
            raise error
        with self._changing:
            cause = self._diagnose_and_cure()
            if cause is None and _is_own_failure(error):
                cause = self._last_gone  # another thread has loaded it again in the meantime
        if cause is not None:
            error.add_note(str(cause))
        raise error from cause

    def cause_of_cut_off(self) -> TpmMtlsError | None:
        """Whether the own key is why a server cut a connection off before it said anything; none if the key signs.

        A key that is gone has been loaded again by then.
        """
        with self._changing:
            return self._diagnose_and_cure()

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
        if not self._changing.acquire(timeout=_PATIENCE):
            return  # a daemon thread waits for the TPM
        try:
            temporary = self._connection is not None and not isinstance(self._source.identity.key, PersistentHandle)
            with self.guard:
                if temporary and not self._of_parent and not self._handshakes:
                    contexts.empty_key(self._ssl_ctx)
        finally:
            self._changing.release()

    def after_fork(self) -> None:
        """In a forked child: the parent's key must never be flushed from here, and no lock be waited for."""
        self.guard = threading.RLock()
        self._changing = threading.RLock()
        self._handshakes = 0
        if self._connection is not None:
            contexts.abandon_key(self._ssl_ctx)
            self._of_parent = True

    def _diagnose_and_cure(self) -> TpmMtlsError | None:
        cause = self.diagnose()
        return self._load_again(cause) if isinstance(cause, _LOST) else cause

    def _load_again(self, cause: KeyGoneError | TpmUnavailableError) -> TpmMtlsError:
        try:
            self._load(abandon=True)
        except TpmMtlsError as failure:
            return _bare(failure)
        _log.debug("%s; it is loaded again", cause)
        self._last_gone = cause if isinstance(cause, KeyGoneError) else self._gone("the connection to it broke")
        return self._last_gone

    def _load(self, *, abandon: bool) -> None:
        path = self._source.identity.certificate
        with certificates.read_chain(path) as chain:
            certificates.check_validity(path, chain.not_before, chain.not_after, now=self._source.clock())
            loaded, connection = self._load_key(keys.key_type(chain.public_key))
            with keys.freeing(loaded):
                self._check_type(loaded)
                self._check_authorization(loaded, connection)
                with contexts.holding_key(self._ssl_ctx, abandon=abandon), self.guard:
                    self._install(chain, loaded)
                    self._connection, self._loaded, self._of_parent = connection, True, False
                    self.generation += 1
        process_hooks.key_was_loaded()

    def _load_key(self, expected: str) -> tuple[LoadedKey, TpmConnection | None]:
        key, authorization = self._source.identity.key, self._source.authorization
        if isinstance(key, KeyFile) and not key.is_tss2():
            return keys.load_software_key(key, authorization), None
        folders = policy_folders(key, self._source.identity.certificate)
        connection = provider.connect(key_tcti(self._source.tcti, folders, relay=self._source.relay))
        try:
            return self._load_tpm_key(connection, expected), connection
        except (TpmUnavailableError, TpmRefusedError) as error:
            # a resource manager that was restarted has closed the old connection; another key is at the handle
            if isinstance(error, TpmRefusedError) and error.rc != _OTHER_NAME:
                raise
            connection = provider.connect(connection.tcti, instead_of=connection)
            return self._load_tpm_key(connection, expected), connection

    def _load_tpm_key(self, connection: TpmConnection, expected: str) -> LoadedKey:
        with connection.loading, provider.turn(connection):
            source = self._source
            return keys.load_tpm_key(source.identity.key, connection, source.authorization, expected=expected)

    def _check_type(self, loaded: LoadedKey) -> None:
        if self._loaded and contexts.key_type(self._ssl_ctx) != keys.key_type(loaded.pkey):
            # an SSL_CTX has one place per type, and no way to empty one
            raise CredentialError(
                f"the key {self._source.identity.key} is of another type than the one it replaces",
                hint="restart the program, or make a new context",
            )

    def _check_authorization(self, loaded: LoadedKey, connection: TpmConnection | None) -> None:
        if loaded.asked and connection is not None:
            self._sign(loaded.pkey, connection)

    def _sign(self, pkey: int, connection: TpmConnection) -> bytes:
        with provider.turn(connection):
            return keys.sign_test_message(pkey, connection.libctx, partial(self._signing_error, connection.tcti))

    def _install(self, chain: Chain, loaded: LoadedKey) -> None:
        if not contexts.use(self._ssl_ctx, chain.leaf, chain.issuers, loaded.pkey):
            identity = self._source.identity
            raise CertificateMismatchError(
                f"the certificate {identity.certificate} does not belong to the key {identity.key}",
                hint="give the certificate that was issued for this key, or enroll again",
            )

    def _signing_error(self, tcti: str, rc: int | None, text: str) -> TpmMtlsError:
        key = self._source.identity.key
        if rc is None:
            return OpensslError(
                f"the key {key} does not sign: {text}", hint="try it with openssl: tpm-mtls openssl-env --help"
            )
        error = tpm_error(rc, doing=f"sign with the key {key}", tcti=tcti)
        if isinstance(error, HandleNotFoundError) or rc == _BAD_OBJECT:
            return self._gone(describe(rc), rc)
        if isinstance(error, AuthorizationError) and self._source.authorization is None:
            return AuthorizationError(
                f"the key {key} needs an authorization value ({describe(rc)})", hint=error.hint, rc=rc
            )
        error.hint = error.hint.replace(KEY, f"--key {key}")
        return error

    def _gone(self, why: str, rc: int = 0) -> KeyGoneError:
        return KeyGoneError(
            f"the key {self._source.identity.key} that was loaded is gone ({why})",
            hint="load it again; programs that use the client do so by themselves",
            rc=rc,
        )


def _is_own_failure(error: ssl.SSLError) -> bool:
    return error.reason in _OWN_FAILURES or "EVP lib" in str(error)


def _bare(error: TpmMtlsError) -> TpmMtlsError:
    """Without its way here, in which a TLS socket and so its context and the key would live on."""
    error.__context__ = None
    return error.with_traceback(None)
