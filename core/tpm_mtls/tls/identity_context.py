"""`IdentityContext`: an `ssl.SSLContext` whose private key may live in a TPM. Made by `tpm_mtls.tls`."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import PemError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.openssl import contexts, signatures
from tpm_mtls.tls import process_hooks
from tpm_mtls.tls.objects import IdentityObject, make_bridge
from tpm_mtls.tls.own_key import OwnKey
from tpm_mtls.tls.revocation import RevocationLists
from tpm_mtls.tls.sessions import Resumption, SessionCache
from tpm_mtls.tls.sockets import IdentitySocket
from tpm_mtls.tls.tickets import TicketKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from tpm_mtls.errors import TpmMtlsError
    from tpm_mtls.tls.key_source import Source


class IdentityContext(ssl.SSLContext):
    """A TLS context with one set of trust anchors, and mostly with an own certificate and key.

    Verification of the peer cannot be weakened and no trust anchors be added. A handshake that fails because the TPM
    restarted and the key is gone raises its `ssl.SSLError` with a `KeyGoneError` as ``__cause__``; the context has
    loaded the key again by then, so the next connection works. In a forked child it loads the key anew when it is
    first used.

    A certificate or key file that was replaced is noticed before the next handshake (two calls of stat(2)); connections
    that are there go on. What does not fit, such as a new key whose certificate is not there yet, leaves the present
    certificate and key in use.

    A server's list of revoked certificates is followed in the same way (one more call of stat(2)), but what does not
    fit leaves nothing in use: no client certificate is accepted then.

    A client's connections resume the TLS sessions of earlier ones by themselves, which takes no signature. In asyncio,
    for clients and servers, a thread waits for the TPM and not the event loop (docs/decisions/0005).

    Attributes:
        own_key: certificate and key; none for a context that only verifies.
        sessions: of earlier connections to servers, with the present certificate.
    """

    sslsocket_class = IdentitySocket
    sslobject_class = IdentityObject
    own_key: OwnKey | None = None
    _tickets: TicketKeys | None = None  # a server's
    _revocation: RevocationLists | None = None  # the same

    def __init__(self, protocol: int, *, trust: Path | None, verify_mode: ssl.VerifyMode) -> None:  # noqa: ARG002 - protocol is for __new__
        self._trust = trust
        self._floor = ssl.CERT_NONE
        self.verify_mode = verify_mode
        self._floor = verify_mode
        self.sessions = SessionCache()
        if trust is not None:
            _load_trust(self, trust)

    def load_own_key(self, source: Source) -> None:
        """Gives it a certificate and key of its own, once.

        Raises:
            TpmMtlsError: as `tpm_mtls.tls.client_context`.
        """
        address = contexts.address(self)
        own = OwnKey(address, source)
        own.load()
        signatures.make_stoppable(address)
        if self.protocol is ssl.PROTOCOL_TLS_SERVER:
            self._tickets = TicketKeys(address)
        self.own_key = own
        process_hooks.watch(self)

    def load_revocation_lists(self, crl: Path, *, clock: Callable[[], datetime]) -> None:
        """Looks the peers' certificates up in the lists of the file ``crl`` from now on.

        Raises:
            TpmMtlsError: as `tpm_mtls.tls.server_context`.
        """
        self._revocation = RevocationLists(contexts.address(self), crl, clock=clock)
        self.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN

    @property
    def revocation_problem(self) -> TpmMtlsError | None:
        """Why no client certificate is accepted right now: the lists of revoked certificates are missing, damaged or
        stale. None when they are good, or nobody asked for them.
        """  # noqa: D205 - one thought
        if self._revocation is None:
            return None
        with self.following():
            return self._revocation.problem

    def reload(self) -> None:
        """Reads certificate and key again now: new connections use them, existing ones stay as they are.

        Raises:
            TpmMtlsError: as `tpm_mtls.tls.client_context`; the present certificate and key stay in use.
        """
        if self.own_key is not None:
            self.own_key.load()

    @property
    def certificate_ends(self) -> datetime:
        """The end of the validity of the own certificate that is in use.

        Raises:
            UsageError: this context has none.
        """
        if self.own_key is None:
            raise UsageError("this context has no certificate of its own", hint="make it with an identity")
        return self.own_key.ends

    def diagnose(self) -> TpmMtlsError | None:
        """Why the own key does not sign right now, found out by a test signature (3 TPM commands); none if it does.

        Returns:
            `KeyGoneError` when the TPM restarted since the key was loaded (`reload` helps), or the TPM's other answer.
            Always none for a software key.
        """
        return None if self.own_key is None else self.own_key.diagnose()

    @property
    def check_hostname(self) -> bool:
        """Whether the peer's name is checked."""
        return super().check_hostname

    @check_hostname.setter
    def check_hostname(self, value: bool) -> None:
        if not value and self.check_hostname:
            raise UsageError("the peer's name is always checked", hint="connect with the name in its certificate")
        ssl.SSLContext.check_hostname.__set__(self, value)  # type: ignore[attr-defined]  # a C descriptor

    @property  # type: ignore[override]  # typeshed calls it an int one class further up
    def verify_mode(self) -> ssl.VerifyMode:
        """Whether the peer's certificate is verified."""
        return super().verify_mode

    @verify_mode.setter
    def verify_mode(self, value: ssl.VerifyMode) -> None:
        if value < self._floor:
            raise UsageError(
                "the peer's certificate is always verified", hint="put its CA's certificate into the trust file"
            )
        ssl.SSLContext.verify_mode.__set__(self, value)  # type: ignore[attr-defined]  # a property

    def load_verify_locations(
        self,
        cafile: Any = None,  # noqa: ANN401 - the parent's signature
        capath: Any = None,  # noqa: ANN401 - the same
        cadata: Any = None,  # noqa: ANN401 - the same
    ) -> None:
        """Accepts the trust file it has already (some libraries pass it again) and refuses any other.

        Raises:
            UsageError: another one.
        """
        if capath is None and cadata is None and cafile is not None and Path(os.fsdecode(cafile)) == self._trust:
            return
        raise _more_trust()

    def set_default_verify_paths(self) -> None:
        """Refuses the system's CAs.

        Raises:
            UsageError: always.
        """
        raise _more_trust()

    def load_default_certs(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:  # noqa: ARG002 - the parent's
        """Refuses the system's CAs.

        Raises:
            UsageError: always.
        """
        raise _more_trust()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *arguments: Any,  # noqa: ANN401 - the parent's signature
        **options: Any,  # noqa: ANN401 - the same
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`."""
        kind = self.sslobject_class
        if self.own_key is not None and self.own_key.tcti is not None and issubclass(kind, IdentityObject):
            bridge = make_bridge(incoming, outgoing, sys._getframe(1))  # noqa: SLF001 - see IdentityObject.do_handshake
            if bridge is not None:
                tls = super().wrap_bio(bridge.incoming, bridge.outgoing, *arguments, **options)
                tls.bridge = bridge  # type: ignore[attr-defined]  # it is of `kind`
                return tls
        return super().wrap_bio(incoming, outgoing, *arguments, **options)

    # SSL_new copies certificate and key without a lock, so it must not run beside `reload`. Only these two private
    # methods call it (Lib/ssl.py of CPython 3.11 to 3.14), also for sockets that are connected after they were wrapped.

    def _wrap_socket(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the parent's signature
        with self._ready() as resumption:
            options["owner"].resumption = resumption
            return super()._wrap_socket(*arguments, **options)  # type: ignore[misc]  # private, so not in typeshed

    def _wrap_bio(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the parent's signature
        with self._ready() as resumption:
            options["owner"].resumption = resumption
            return super()._wrap_bio(*arguments, **options)  # type: ignore[misc]  # private, so not in typeshed

    @contextlib.contextmanager
    def _ready(self) -> Iterator[Resumption | None]:
        """While certificate and key stay the same; yields a client connection's part in the sessions."""
        own = self.own_key
        if own is None:
            yield None
            return
        own.ensure_own()
        own.follow()
        with self.following():
            if self._tickets is not None:
                self._tickets.renew_when_due(own.generation)
            yield Resumption(self.sessions, own.generation, id(self)) if self._tickets is None else None

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """While certificate and key stay the same, and the revocation lists are those of now."""
        guard = self.own_key.guard if self.own_key is not None else contextlib.nullcontext()
        with guard:
            if self._revocation is not None:
                self._revocation.follow()
            yield


def _more_trust() -> UsageError:
    return UsageError(
        "this context trusts its trust file and nothing else", hint="put the CA's certificate into the trust file"
    )


def _load_trust(context: ssl.SSLContext, trust: Path) -> None:
    data = read_capped(trust)
    try:
        ssl.SSLContext.load_verify_locations(context, cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise PemError(
            f"{trust} holds no trust anchor in PEM form, or a damaged one",
            hint="expected the CA's root certificate; copy the file again",
        ) from error
