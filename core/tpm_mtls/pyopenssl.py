"""The second front: pyOpenSSL contexts with a TSS2 PEM key in the TPM, or a software key.

pyOpenSSL's OpenSSL is another one than Python's, inside cryptography's wheel. It reads its configuration once, when
cryptography is first imported, and has no way to load a provider afterwards; so `pyopenssl_context` must come before
that import (and with the TPM key before one with a software key), or the whole process be started in the environment
that ``tpm-mtls openssl-env`` prints. It has no OSSL_STORE either, so keys at a persistent handle are for `tpm_mtls.tls`
only. Everything in the process that uses cryptography then runs with the provider beside OpenSSL's own.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import ssl
import sys
import tempfile
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import KeyReferenceError, OpensslError, UsageError
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.openssl import provider
from tpm_mtls.openssl.configuration import environment, write_configuration
from tpm_mtls.relay import key_tcti, policy_folders, tpm_behind
from tpm_mtls.tls import CIPHERS_1_2, client_context, utc_now

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from OpenSSL import SSL

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity

_BINDINGS = "cryptography.hazmat.bindings._rust"

_NO_NAME = b"use-verified-connection.invalid"  # RFC 6761, 6.4: .invalid never exists

_living: weakref.WeakSet[SSL.Context] = weakref.WeakSet()
_tcti: list[str] = []


def pyopenssl_context(
    identity: Identity,
    *,
    tcti: str | None = None,
    authorization: Secret | None = None,
    relay: RelayUse | None = None,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    server_side: bool = False,
    clock: Callable[[], datetime] = utc_now,
) -> SSL.Context:
    """A pyOpenSSL context; the peer must show a certificate that ``identity.trust`` verifies.

    A client makes its connections with `verified_connection`; made in another way they accept no server at all. The key
    is first loaded and checked as `tpm_mtls.tls.client_context` does it, because pyOpenSSL cannot say why it fails.

    Whether a client's certificate was revoked is the caller's to check (``Connection.get_peer_certificate``).

    Args and errors: as `tpm_mtls.tls.client_context`, and:

    Raises:
        KeyReferenceError: a key at a persistent handle.
        OpensslError: cryptography was imported before, without the provider.
    """
    key = identity.key
    if not isinstance(key, KeyFile):
        raise KeyReferenceError(
            f"pyOpenSSL cannot use {key}: it has no OSSL_STORE",
            hint="use tpm_mtls.tls with the standard library's ssl, or a TSS2 PEM file",
        )
    options: dict[str, Any] = {"authorization": authorization, "minimum_version": minimum_version, "clock": clock}
    if key.is_tss2():
        through = key_tcti(tcti, policy_folders(key, identity.certificate), relay=relay)
        _refuse_if_too_late(through)
        client_context(identity, tcti=tcti, relay=relay, **options)
        _start_openssl(through)
    else:
        client_context(identity, **options)
    context = _context(minimum_version)
    _load(context, identity, authorization)
    if not server_side:
        _require_name(context)
    _living.add(context)
    return context


def verified_connection(context: SSL.Context, connection: socket.socket, host: str) -> SSL.Connection:
    """A client's connection over a connected socket, which accepts a certificate for ``host`` only.

    Args:
        context: from `pyopenssl_context`.
        connection: a connected TCP socket.
        host: the server's name (A-label form) or IP address, as in its certificate; no port.

    Raises:
        UsageError: ``host`` is empty or no name that can be in a certificate.
    """
    from OpenSSL import SSL  # noqa: PLC0415 - reads OpenSSL's configuration: not before pyopenssl_context
    from OpenSSL._util import ffi, lib  # noqa: PLC0415 - pyOpenSSL has no other way to OpenSSL's own name check

    tls = SSL.Connection(context, connection)
    parameters = lib.SSL_get0_param(tls._ssl)  # noqa: SLF001 - the same
    try:
        address = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode("ascii", errors="replace")
        accepted = bool(name) and b"?" not in name and lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
        if accepted:
            tls.set_tlsext_host_name(name)
    else:
        lib.X509_VERIFY_PARAM_set1_host(parameters, ffi.NULL, 0)
        accepted = lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))
    if accepted != 1:
        raise UsageError(f"not a host name: {host[:80]!r}", hint="give the name in the server's certificate")
    tls.set_connect_state()
    return tls


def _refuse_if_too_late(tcti: str) -> None:
    if _tcti:
        if _tcti != [tcti]:
            same = tpm_behind(_tcti[0]) == tpm_behind(tcti)
            raise OpensslError(
                f"pyOpenSSL uses the TPM at {tpm_behind(_tcti[0])} already{' in another way' if same else ''}",
                hint="one process can use one TPM with pyOpenSSL, with or without the relay, policies of one folder",
            )
    elif _BINDINGS in sys.modules and "OPENSSL_CONF" not in os.environ:
        raise OpensslError(
            "cryptography was imported before, and its OpenSSL takes no provider any more",
            hint='call pyopenssl_context before that, or start the program after: eval "$(tpm-mtls openssl-env)"',
        )


def _start_openssl(tcti: str) -> None:
    """Imports cryptography, whose OpenSSL reads its configuration then, with a provider for the TPM at ``tcti``."""
    if _BINDINGS not in sys.modules:
        with tempfile.TemporaryDirectory(prefix="tpm-mtls-") as folder:
            configuration = Path(folder, "openssl.cnf")
            write_configuration(configuration)
            with _variables(environment(configuration, tcti)):
                provider.in_lasting_thread(tcti, lambda: importlib.import_module(_BINDINGS))
    _tcti[:] = [tcti]


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _context(minimum_version: ssl.TLSVersion) -> SSL.Context:
    from OpenSSL import SSL, crypto  # noqa: PLC0415 - reads OpenSSL's configuration

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(int(minimum_version))
    context.set_cipher_list(CIPHERS_1_2.encode())
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    flags = crypto.X509StoreFlags
    context.get_cert_store().set_flags(flags.X509_STRICT | flags.PARTIAL_CHAIN)  # type: ignore[union-attr]  # there is one
    context.set_session_id(b"tpm-mtls")
    return context


def _load(context: SSL.Context, identity: Identity, authorization: Secret | None) -> None:
    from OpenSSL import SSL  # noqa: PLC0415 - reads OpenSSL's configuration

    value = authorization.value if authorization else b""
    with warnings.catch_warnings():
        # deprecated in favour of loading keys with cryptography, which cannot load this one
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_passwd_cb(lambda *_: value)
    try:
        context.load_verify_locations(str(identity.trust))
        context.use_certificate_chain_file(str(identity.certificate))
        context.use_privatekey_file(str(identity.key))
        context.check_privatekey()
    except SSL.Error as error:
        raise OpensslError(
            f"pyOpenSSL cannot use the key {identity.key}: {error}",
            hint='Python\'s own ssl can; start the program in its environment: eval "$(tpm-mtls openssl-env)"',
        ) from error


def _require_name(context: SSL.Context) -> None:
    """Connections inherit a name that no certificate has, until `verified_connection` gives them the right one."""
    from OpenSSL._util import lib  # noqa: PLC0415 - pyOpenSSL has no other way to OpenSSL's own name check

    parameters = lib.SSL_CTX_get0_param(context._context)  # noqa: SLF001 - the same
    lib.X509_VERIFY_PARAM_set1_host(parameters, _NO_NAME, len(_NO_NAME))


def _after_fork() -> None:
    """In a forked child: one more reference keeps it from ever flushing its parent's keys."""
    for context in list(_living):
        sys.modules["OpenSSL._util"].lib.SSL_new(context._context)  # noqa: SLF001 - pyOpenSSL has no other way


os.register_at_fork(after_in_child=_after_fork)
