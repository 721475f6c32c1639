"""The certificate and the private key of a TLS context: loaded, replaced, asked why they do not sign."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from tpm_mtls.errors import KeyGoneError, TpmMtlsError, TpmUnavailableError
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.openssl import certificates, contexts, keys, provider
from tpm_mtls.tls import key_failures, process_hooks

if TYPE_CHECKING:
    import ssl
    from contextlib import AbstractContextManager
    from datetime import datetime

    from tpm_mtls.openssl.certificates import Chain
    from tpm_mtls.openssl.keys import LoadedKey
    from tpm_mtls.openssl.provider import TpmConnection
    from tpm_mtls.tls.key_source import Source, Stamp

_log = logging.getLogger(__name__)  # of errors it gets the text: a record that is kept shall not keep the key

_STAYS = "the present certificate and key stay in use: %s"
_PATIENCE = 5.0  # seconds at the interpreter's exit; one TPM command takes less


class OwnKey:
    """Certificate and key inside an ``SSL_CTX``; not to be used after that is freed.

    Attributes:
        guard: held while the ``SSL_CTX`` changes, and to be held while connections are made from it; never while
            the TPM works.
        generation: counts how often certificate and key were loaded.
        ends: the end of the certificate's validity; there once it is loaded.
    """

    ends: datetime

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
        self._seen: Stamp | None = None  # of the files that were loaded last, or that do not fit

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
            self._load(abandon=self._must_abandon())

    def follow(self) -> None:
        """Before a handshake: takes over what has replaced the certificate or key file since they were loaded.

        Two calls of stat(2), and nothing else, while they are the same. A new certificate for the same key is taken
        over without the TPM; a new key is loaded, as by `load`. What cannot be used leaves the present certificate and
        key in use, and is not tried again before one of the files changes, unless the cause passes by itself.
        """
        if self._source.stamp() == self._seen:
            return
        with self._changing:
            stamp = self._source.stamp()
            if stamp == self._seen:
                return  # another thread has done it
            try:
                if not self._load_certificate():
                    self._load(abandon=self._must_abandon())
            except key_failures.PASSING as error:
                _log.debug(_STAYS, str(error))
            except TpmMtlsError as error:
                self._seen = stamp
                _log.warning(_STAYS, str(error))

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
                return key_failures.bare(error)
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
        return self._connection is not None and key_failures.may_be_own(error)

    def explain(self, error: ssl.SSLError) -> NoReturn:
        """Raises the ``error`` of a handshake, its cause a `TpmMtlsError` if the own key is to blame.

        A key that is gone has been loaded again by then.
        """
        if not self.may_explain(error):
            raise error
        with self._changing:
            cause = self._diagnose_and_cure()
            if cause is None and key_failures.is_own(error):
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
        return self._load_again(cause) if isinstance(cause, key_failures.LOST) else cause

    def _load_again(self, cause: KeyGoneError | TpmUnavailableError) -> TpmMtlsError:
        try:
            self._load(abandon=True)
        except TpmMtlsError as failure:
            return key_failures.bare(failure)
        _log.debug("%s; it is loaded again", str(cause))
        self._last_gone = cause if isinstance(cause, KeyGoneError) else self._gone("the connection to it broke")
        return self._last_gone

    def _must_abandon(self) -> bool:
        # what is no longer in the TPM must not be flushed: something else may have its handle by now
        return self._of_parent or (self._loaded and isinstance(self.diagnose(), key_failures.LOST))

    def _load(self, *, abandon: bool) -> None:
        stamp = (
            self._source.stamp()
        )  # before they are read: what is replaced meanwhile is noticed at the next handshake
        with certificates.read_chain(self._source.identity.certificate) as chain:
            self._check_validity(chain)
            loaded, connection = self._source.load_key(keys.key_type(chain.public_key))
            with keys.freeing(loaded):
                self._check_type(loaded)
                self._check_authorization(loaded, connection)
                with contexts.holding_key(self._ssl_ctx, abandon=abandon), self.guard:
                    self._install(chain, loaded.pkey, stamp)
                    self._connection, self._loaded, self._of_parent = connection, True, False
        process_hooks.key_was_loaded()

    def _load_certificate(self) -> bool:
        """Whether the certificate file is for the key that is in use; if so, it is taken over."""
        stamp = self._source.stamp()
        with certificates.read_chain(self._source.identity.certificate) as chain:
            public, private = contexts.key_pair(self._ssl_ctx)
            if not keys.same_public(chain.public_key, public):
                return False
            self._check_validity(chain)
            with contexts.holding_key(self._ssl_ctx, abandon=False), self.guard:
                self._install(chain, private, stamp)
        return True

    def _check_validity(self, chain: Chain) -> None:
        path, now = self._source.identity.certificate, self._source.clock()
        certificates.check_validity(path, chain.not_before, chain.not_after, now=now)

    def _check_type(self, loaded: LoadedKey) -> None:
        if self._loaded and contexts.key_type(self._ssl_ctx) != keys.key_type(loaded.pkey):
            # an SSL_CTX has one place per type, and no way to empty one
            raise key_failures.other_type(self._source.identity.key)

    def _check_authorization(self, loaded: LoadedKey, connection: TpmConnection | None) -> None:
        if loaded.asked and connection is not None:
            self._sign(loaded.pkey, connection)

    def _sign(self, pkey: int, connection: TpmConnection) -> bytes:
        failed = partial(key_failures.signing_error, self._source, connection.tcti)
        with provider.turn(connection):
            return keys.sign_test_message(pkey, connection.libctx, failed)

    def _install(self, chain: Chain, pkey: int, stamp: Stamp) -> None:
        if not contexts.use(self._ssl_ctx, chain.leaf, chain.issuers, pkey):
            raise key_failures.mismatch(self._source.identity)
        self.generation += 1
        self.ends = chain.not_after
        self._seen = stamp

    def _gone(self, why: str) -> KeyGoneError:
        return key_failures.gone(self._source.identity.key, why)
