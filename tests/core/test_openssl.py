"""The parts of `tpm_mtls.openssl` that a handshake does not show."""

from __future__ import annotations

import _ssl
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.certificates import TestCa
from support.handshakes import handshake
from support.tpm_keys import ALGORITHMS, make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import CredentialError, OpensslError, OpensslLinkageError, PemError, ProviderTooOldError
from tpm_mtls.openssl import certificates, contexts, library, provider
from tpm_mtls.openssl.library import QueuedError
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

HANDLE = 0x81000100


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


# --- the library ---


def test_the_library_is_pythons_own() -> None:
    assert library.openssl().OpenSSL_version(0).decode() == ssl.OPENSSL_VERSION


@pytest.mark.parametrize("module", [None, "/nonexistent.so", "libc.so.6"])
def test_a_python_without_a_shared_openssl_is_refused(module: str | None) -> None:
    library.bind(_ssl.__file__)
    with pytest.raises(OpensslLinkageError, match="cannot be reached") as caught:
        library.bind(module)
    assert "distribution's python3" in caught.value.hint


def test_another_openssl_than_pythons_is_refused() -> None:
    with pytest.raises(OpensslLinkageError, match=r"uses OpenSSL 3\.99, its module is linked to OpenSSL 3\."):
        library.bind(_ssl.__file__, expected="OpenSSL 3.99")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("479 tpm:parameter(1):integrity check failed", 0x1DF),
        ("655370", 0xA000A),
        ("-1 x", 0xFFFFFFFF),
        ("", None),
        ("No supported data to decode. Input type: PEM", None),
        ("12x", None),
        ("99999999999 x", None),
    ],
)
def test_response_codes_in_the_error_queue(data: str, code: int | None) -> None:
    assert QueuedError("cannot load key", data).response_code == code


@given(st.text(), st.text())
def test_any_queue_entry_can_be_read(reason: str, data: str) -> None:
    entry = QueuedError(reason, data)
    code = entry.response_code
    assert code is None or 0 <= code < 1 << 32
    assert str(entry) == ": ".join(part for part in (reason, data) if part)


# --- the provider ---


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.3.0", (1, 3, 0)), ("1.3.0-rc1", (1, 3, 0)), ("1.10", (1, 10)), ("", ()), ("v1", ())],
)
def test_provider_versions(text: str, version: tuple[int, ...]) -> None:
    assert provider.parse_version(text) == version


def test_old_providers_are_refused(tmp_path: Path) -> None:
    provider.check_version((1, 2, 0), tmp_path)
    for old in ((1, 1, 1), (0, 9), ()):
        with pytest.raises(ProviderTooOldError, match="the tpm2 provider in"):
            provider.check_version(old, tmp_path)


def test_one_connection_per_tpm(tpm: SimulatedTpm) -> None:
    first = provider.connect(tpm.tcti)
    assert provider.connect(tpm.tcti) is first
    second = provider.connect(tpm.tcti, instead_of=first)
    assert second is not first
    assert provider.connect(tpm.tcti, instead_of=first) is second  # somebody else has replaced it already
    assert first.version >= (1, 3)
    assert first.turn is None


def test_the_default_library_context_stays_clean(tpm: SimulatedTpm) -> None:
    """Nothing else in the process may come to use the TPM: not hashlib, not another TLS context."""
    available = library.openssl().OSSL_PROVIDER_available
    provider.connect(tpm.tcti)
    assert available(None, b"default") == 1
    assert available(None, b"tpm2") == 0
    assert available(provider.connect(tpm.tcti).libctx, b"tpm2") == 1


# --- contexts ---


def test_a_context_that_contradicts_python_is_not_touched() -> None:
    class Liar(ssl.SSLContext):
        @property
        def options(self) -> ssl.Options:
            return ssl.Options.OP_ALL | ssl.Options.OP_NO_TLSv1

    assert contexts.address(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(OpensslLinkageError, match="built differently"):
        contexts.address(Liar(ssl.PROTOCOL_TLS_CLIENT))


def test_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    with pytest.raises(OpensslLinkageError, match="built differently"):
        contexts.address(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def test_groups_that_openssl_does_not_have() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    contexts.set_groups(context, "P-256")
    with pytest.raises(OpensslError, match="does not accept the groups P-257"):
        contexts.set_groups(context, "P-257")


# --- certificates ---


def test_the_validity_of_a_chains_leaf(ca: TestCa) -> None:
    path = ca.software_identity("x").certificate
    with certificates.read_chain(path) as chain:
        assert chain.not_before.tzinfo is not None
        assert (chain.not_after - chain.not_before).days == 30
        assert chain.leaf
        assert chain.issuers


def test_a_validity_that_is_no_time(ca: TestCa) -> None:
    path = ca.software_identity("x").certificate
    text = path.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    der = bytearray(ssl.PEM_cert_to_DER_cert(text))
    at = der.index(b"\x17\x0d") + 2  # the first UTCTime of the validity
    der[at : at + 13] = b"9913322561zzZ"
    path.write_text(ssl.DER_cert_to_PEM_cert(bytes(der)))
    with pytest.raises(PemError, match="is no usable certificate"), certificates.read_chain(path):
        pass


def test_a_public_key_that_openssl_does_not_know(ca: TestCa) -> None:
    path = ca.software_identity("x").certificate
    text = path.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    der = ssl.PEM_cert_to_DER_cert(text)
    unknown = der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0277"))
    path.write_text(ssl.DER_cert_to_PEM_cert(unknown))
    with pytest.raises(CredentialError, match="is no usable certificate"), certificates.read_chain(path):
        pass


# --- what it costs the TPM ---


@pytest.mark.parametrize("handle", [None, HANDLE])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_tpm_commands(
    algorithm: str, handle: int | None, ca: TestCa, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nothing to a ready context 5 or 6, a TLS 1.3 handshake 2 or 3: what the provider itself needs."""
    key = make_key(tpm, ca.folder, algorithm, handle=handle)
    identity = ca.identity(key.reference, key.public_key, "device")
    server = server_context(ca.software_identity("localhost"))
    trace = CommandTrace(tpm, ca.folder, monkeypatch)
    client = client_context(identity, tcti=trace.tcti)
    curve = ["ECC_Parameters"] if algorithm.startswith("ecc") else []
    ready = ["GetCapability"] * 3 + ["ReadPublic", "ReadPublic" if handle else "Load", *curve]
    assert trace.commands() == ready
    handshake(client, server)
    assert trace.commands() == [*ready, *curve, "Hash", "Sign"]
    client.diagnose()
    assert trace.commands() == [*ready, *curve, "Hash", "Sign", "Hash", "Sign"]


# --- providers that sign on one thread only ---


def test_with_provider_1_2_threads_take_turns(ca: TestCa, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and server of one handshake share the TPM connection: neither may hold it while it waits for the other."""
    monkeypatch.setattr(provider, "_THREADS_VERSION", (99,))
    key = make_key(tpm, ca.folder, handle=HANDLE)
    client = client_context(ca.identity(key.reference, key.public_key, "localhost"), tcti=tpm.tcti)
    server = server_context(ca.identity(key.reference, key.public_key, "localhost"), tcti=tpm.tcti)
    assert provider.connect(tpm.tcti).turn is not None
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: handshake(client, server).client, range(24)))
    assert seen == ["localhost"] * 24


def test_with_provider_1_2_timeouts_hold(ca: TestCa, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_THREADS_VERSION", (99,))
    key = make_key(tpm, ca.folder, handle=HANDLE)
    client = client_context(ca.identity(key.reference, key.public_key, "localhost"), tcti=tpm.tcti)
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0.05)
        with pytest.raises(TimeoutError, match="handshake timed out"):
            client.wrap_socket(near, server_hostname="localhost")
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        tls = client.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
        with tls, pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
