"""The tpm2 provider in a library context of its own: one connection to one TPM.

Nothing is loaded into OpenSSL's default library context, where it would offer its TLS groups, digests and random
numbers to the whole process (docs/decisions/0001). A loaded connection is never torn down: an `ssl.SSLSocket` may hold
one of its keys for longer than anybody knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tpm_mtls.errors import ProviderMissingError, ProviderTooOldError
from tpm_mtls.openssl.library import Param, openssl, take_errors
from tpm_mtls.reachability import with_reason
from tpm_mtls.response_codes import tpm_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_MODULES_DIR = 1003  # OPENSSL_INFO_MODULES_DIR
_UTF8_PTR = 6  # OSSL_PARAM_UTF8_PTR
_MINIMUM_VERSION = (1, 2)  # 1.1 cannot do TLS client authentication: it signs with the exported public half
_THREADS_VERSION = (1, 3)  # 1.2 has no lock around its TPM connection

T = TypeVar("T")

_PROGRAM = "cmd:"
"""In a TCTI string: libtss2 starts a program to reach the TPM."""

_connections: dict[str, TpmConnection] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class TpmConnection:
    """A library context (``OSSL_LIB_CTX *``) with the providers default and tpm2.

    Attributes:
        libctx: its address.
        tcti: where its TPM is.
        version: the provider's version.
        turn: to be held while its keys are used, where the provider has no lock of its own; else none.
        loading: to be held while a key is loaded. The ESAPI has one object per persistent handle, so that of two
            threads that load keys with the same parent one would close it under the other's feet.
    """

    libctx: int
    tcti: str
    version: tuple[int, ...]
    turn: AbstractContextManager[object] | None
    loading: AbstractContextManager[object] = field(default_factory=threading.Lock)


def turn(connection: TpmConnection | None) -> AbstractContextManager[object]:
    """What to hold while keys of ``connection`` are used."""
    return contextlib.nullcontext() if connection is None or connection.turn is None else connection.turn


def connect(tcti: str, *, instead_of: TpmConnection | None = None) -> TpmConnection:
    """This process's connection to the TPM at ``tcti``, made when there is none yet (3 TPM commands).

    Args:
        tcti: where the TPM is.
        instead_of: a connection that has turned out to be dead.

    Raises:
        ProviderMissingError: OpenSSL finds no tpm2 provider.
        ProviderTooOldError: it is older than 1.2.
        TpmUnavailableError: no TPM answers there.
        TpmVersionError: it is a TPM 1.2.
        TpmRefusedError: the TPM answers with an error.
        OpensslLinkageError: Python's OpenSSL cannot be reached.
    """
    with _lock:
        if _connections.get(tcti) is instead_of:
            _connections[tcti] = in_lasting_thread(tcti, partial(_load, tcti, modules_folder()))
        return _connections[tcti]


def after_fork() -> None:
    """In a forked child: the connections are the parent's, and another of its threads may have held the lock."""
    global _lock  # noqa: PLW0603 - it guards this module's own state
    _lock = threading.Lock()
    _connections.clear()


def modules_folder() -> Path:
    """Where OpenSSL's modules are: $OPENSSL_MODULES, else this environment's ``lib/ossl-modules`` (the set-up puts the
    provider there), else OpenSSL's own folder.

    Raises:
        ProviderMissingError: none of them has ``tpm2.so``.
    """  # noqa: D205 - one sentence
    own = Path(os.fsdecode(openssl().OPENSSL_info(_MODULES_DIR)))
    named = os.environ.get("OPENSSL_MODULES")
    candidates = [Path(named)] if named else [Path(sys.prefix, "lib", "ossl-modules"), own]
    for folder in candidates:
        if (folder / "tpm2.so").exists():
            return folder
    raise ProviderMissingError(
        f"there is no tpm2 provider in {' or '.join(map(str, candidates))}",
        hint="run ./run setup, or install the package tpm2-openssl (1.3 or newer), or name its folder: OPENSSL_MODULES",
    )


def in_lasting_thread(tcti: str, open_tpm: Callable[[], T]) -> T:
    """What ``open_tpm`` returns or raises, called in a thread that lasts if libtss2 starts a program to reach ``tcti``.

    libtss2's cmd transport asks the kernel to end that program with the *thread* that started it (PR_SET_PDEATHSIG,
    see prctl(2)), and leaves the thread with SIGCHLD blocked. A worker's thread may end long before its TLS contexts,
    so another one does it in its place, and then waits for the process's end; the main thread gets its signals back.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        if _PROGRAM not in tcti or threading.get_native_id() == os.getpid():
            return open_tpm()
        opening: Future[T] = Future()
        threading.Thread(target=_fulfil, args=(opening, open_tpm), name="tpm-mtls-relay", daemon=True).start()
        return opening.result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _fulfil(opening: Future[T], open_tpm: Callable[[], T]) -> None:
    try:
        opening.set_result(open_tpm())
    except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
        opening.set_exception(error)
    else:
        threading.Event().wait()


def _load(tcti: str, folder: Path) -> TpmConnection:
    library = openssl()
    library.ERR_clear_error()
    libctx = library.OSSL_LIB_CTX_new()
    try:
        version = _load_providers(libctx, tcti, folder)
    except BaseException:
        library.OSSL_LIB_CTX_free(libctx)
        raise
    return TpmConnection(libctx, tcti, version, threading.RLock() if version < _THREADS_VERSION else None)


def _load_providers(libctx: int, tcti: str, folder: Path) -> tuple[int, ...]:
    library = openssl()
    library.OSSL_PROVIDER_set_default_search_path(libctx, os.fsencode(folder))
    with _provider_environment(tcti):
        # default by name: without it a library context with another provider has none of its algorithms
        loaded = library.OSSL_PROVIDER_load(libctx, b"default") and library.OSSL_PROVIDER_load(libctx, b"tpm2")
    if not loaded:
        raise _load_error(tcti, folder)
    version = _version(loaded)
    check_version(version, folder)
    return version


def check_version(version: tuple[int, ...], folder: Path) -> None:
    """Refuses a provider that cannot do TLS client authentication.

    Raises:
        ProviderTooOldError: ``version`` of the one in ``folder`` is older than 1.2.
    """
    if version < _MINIMUM_VERSION:
        raise ProviderTooOldError(
            f"the tpm2 provider in {folder} is {'.'.join(map(str, version)) or 'of an unknown version'}",
            hint="1.2 at least is needed, 1.3 is better: ./run setup",
        )


@contextlib.contextmanager
def _provider_environment(tcti: str) -> Iterator[None]:
    """The provider reads its TCTI from the environment, and only while it is loaded."""
    # libtss2 writes its own lines to stderr otherwise; it looks at this at its first message, which may come later
    os.environ.setdefault("TSS2_LOG", "all+none")
    before = os.environ.get("TPM2OPENSSL_TCTI")
    os.environ["TPM2OPENSSL_TCTI"] = tcti
    try:
        yield
    finally:
        if before is None:
            del os.environ["TPM2OPENSSL_TCTI"]
        else:
            os.environ["TPM2OPENSSL_TCTI"] = before


def _load_error(tcti: str, folder: Path) -> Exception:
    errors = take_errors()
    for error in errors:
        if error.response_code is not None:
            return with_reason(tpm_error(error.response_code, doing="connect to the TPM", tcti=tcti))
    hint = "is it made for this OpenSSL, and is libtss2 installed? ./run setup installs both"
    if _connections:  # on OpenSSL 3.5 some 168 times: each keeps six of the C library's 1024 thread keys
        hint = "it did before: one process can load it only so often; restart the program"
    return ProviderMissingError(
        f"the tpm2 provider in {folder} does not load: {'; '.join(map(str, errors))}", hint=hint
    )


def _version(provider: int) -> tuple[int, ...]:
    text = ctypes.c_char_p()
    wanted = Param(b"version", _UTF8_PTR, ctypes.cast(ctypes.pointer(text), ctypes.c_void_p), 0, 0)
    openssl().OSSL_PROVIDER_get_params(provider, (Param * 2)(wanted, Param()))
    return parse_version((text.value or b"").decode(errors="replace"))


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers at the start of ``text``: (1, 3, 0) for ``1.3.0-rc1``; none of them for none."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in match.group().split(".")) if match else ()
