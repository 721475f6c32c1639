"""Handshakes with every kind of key, algorithm and version; after each success the same call with one fault."""

from __future__ import annotations

import asyncio
import gc
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support.certificates import TestCa, write_software_key
from support.handshakes import attempt, handshake
from support.tpm_keys import ALGORITHMS, make_key
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import PemError, StorageError, UsageError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import ClientCertificates, IdentityContext, client_context, server_context, trust_context

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
HANDLE = 0x81000100


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server(ca: TestCa) -> IdentityContext:
    """A server with a software key that wants client certificates, TLS 1.2 and 1.3."""
    return server_context(ca.software_identity("localhost"), minimum_version=V1_2)


@pytest.mark.parametrize("version", [V1_3, V1_2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["tss2", "handle"])
def test_a_tpm_key_authenticates_a_client_and_a_server(
    kind: str, algorithm: str, version: ssl.TLSVersion, tpm: SimulatedTpm, ca: TestCa, tmp_path: Path
) -> None:
    key = make_key(tpm, tmp_path, algorithm, handle=HANDLE if kind == "handle" else None)
    server = server_context(ca.software_identity("localhost"), minimum_version=version)
    client = client_context(
        ca.identity(key.reference, key.public_key, "device"), tcti=tpm.tcti, minimum_version=version
    )
    client.maximum_version = version
    seen = handshake(client, server)
    assert (seen.client, seen.server, seen.version) == ("device", "localhost", version.name.replace("_", "."))

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client, server, name="other.example")
    stranger = TestCa(tmp_path, "stranger")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        handshake(client, server_context(stranger.software_identity("localhost"), minimum_version=version))
    other = Identity(key.reference, stranger.certify(key.public_key, "device"), ca.trust)
    unknown = client_context(other, tcti=tpm.tcti, minimum_version=version)
    _, _, refusal = attempt(unknown, server)
    assert isinstance(refusal, ssl.SSLCertVerificationError)

    del client, unknown  # without a resource manager a TPM has room for two loaded keys
    own = ca.identity(key.reference, key.public_key, "localhost")
    tpm_server = server_context(own, tcti=tpm.tcti, minimum_version=version)
    assert handshake(client_context(ca.software_identity("me"), minimum_version=version), tpm_server).client == "me"


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_a_software_key_works_without_a_tpm(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, ca: TestCa, server: IdentityContext
) -> None:
    client = client_context(ca.software_identity("soft", key), tcti="swtpm:host=127.0.0.1,port=1")
    assert handshake(client, server).client == "soft"
    assert client.diagnose() is None
    client.reload()
    assert handshake(client, server).client == "soft"


def test_an_encrypted_software_key_needs_its_passphrase(ca: TestCa, server: IdentityContext, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write_software_key(tmp_path / "k.pem", key, b"secret")
    identity = ca.identity(KeyFile(tmp_path / "k.pem"), key.public_key(), "soft")
    assert handshake(client_context(identity, authorization=Secret(b"secret")), server).client == "soft"


def test_certificate_before_the_key_in_one_file(ca: TestCa, server: IdentityContext, tpm: SimulatedTpm) -> None:
    """As haproxy wants it; a program may keep both in one file."""
    key = make_key(tpm, ca.folder)
    identity = ca.identity(key.reference, key.public_key, "device")
    both = ca.folder / "both.pem"
    both.write_bytes(identity.certificate.read_bytes() + Path(str(key.reference)).read_bytes())
    joined = Identity(KeyFile(both), identity.certificate, identity.trust)
    assert handshake(client_context(joined, tcti=tpm.tcti), server).client == "device"


def test_asyncio_streams_use_the_key(ca: TestCa, tpm: SimulatedTpm) -> None:
    key = make_key(tpm, ca.folder)
    client = client_context(ca.identity(key.reference, key.public_key, "device"), tcti=tpm.tcti)
    server = server_context(ca.software_identity("localhost"))

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(writer.get_extra_info("peercert")["subject"]).encode())
        writer.close()
        await writer.wait_closed()

    async def exchange() -> bytes:
        listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
            text = await reader.read()
            writer.close()
            await writer.wait_closed()
            return text

    assert b"device" in asyncio.run(exchange())


def test_only_aead_with_forward_secrecy_is_offered(ca: TestCa) -> None:
    client = client_context(ca.software_identity("soft"), minimum_version=V1_2)
    for cipher in client.get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["protocol"] == "TLSv1.3" or cipher["kea"] == "kx-ecdhe", cipher
    assert client.options & ssl.OP_NO_RENEGOTIATION
    assert client.options & ssl.OP_NO_COMPRESSION


def test_tls_1_2_is_refused_unless_asked_for(ca: TestCa, server: IdentityContext) -> None:
    server.maximum_version = V1_2
    identity = ca.software_identity("soft")
    assert handshake(client_context(identity, minimum_version=V1_2), server).version == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        handshake(client_context(identity), server)
    with pytest.raises(UsageError, match=r"TLS version TLSv1_1 is not offered"):
        client_context(identity, minimum_version=ssl.TLSVersion.TLSv1_1)


def test_an_unusual_group_is_not_accepted(ca: TestCa) -> None:
    for curve, accepted in (("prime256v1", True), ("secp384r1", True), ("secp521r1", False)):
        client = trust_context(ca.trust)
        client.set_ecdh_curve(curve)
        anybody = server_context(ca.software_identity("localhost"), client_certificates=ClientCertificates.NONE)
        if accepted:
            assert handshake(client, anybody).server == "localhost"
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                handshake(client, anybody)


def test_client_certificates_are_required_optional_or_not_asked_for(ca: TestCa) -> None:
    identity = ca.software_identity("localhost")
    nobody, somebody = trust_context(ca.trust), client_context(ca.software_identity("me"))
    for wanted, anonymous, known in (
        (ClientCertificates.OPTIONAL, None, "me"),
        (ClientCertificates.NONE, None, None),
    ):
        context = server_context(identity, client_certificates=wanted)
        assert handshake(nobody, context).client == anonymous
        assert handshake(somebody, context).client == known
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        handshake(nobody, server_context(identity))
    assert handshake(somebody, server_context(identity)).client == "me"


def test_a_server_without_client_certificates_needs_no_trust_file(ca: TestCa, tmp_path: Path) -> None:
    good = ca.software_identity("localhost")
    identity = Identity(good.key, good.certificate, tmp_path / "missing.pem")
    context = server_context(identity, client_certificates=ClientCertificates.NONE)
    assert handshake(trust_context(ca.trust), context).server == "localhost"
    with pytest.raises(StorageError, match=r"missing\.pem"):
        server_context(identity)


def test_verification_cannot_be_switched_off(ca: TestCa) -> None:
    client = client_context(ca.software_identity("soft"))
    with pytest.raises(UsageError, match="name is always checked"):
        client.check_hostname = False
    with pytest.raises(UsageError, match="certificate is always verified"):
        client.verify_mode = ssl.CERT_NONE
    with pytest.raises(UsageError, match="certificate is always verified"):
        client.verify_mode = ssl.CERT_OPTIONAL
    client.check_hostname = True
    client.verify_mode = ssl.CERT_REQUIRED
    assert client.check_hostname
    assert client.verify_mode is ssl.CERT_REQUIRED
    server = server_context(ca.software_identity("localhost"))
    assert not server.check_hostname
    with pytest.raises(UsageError, match="certificate is always verified"):
        server.verify_mode = ssl.CERT_OPTIONAL


def test_only_the_trust_file_is_trusted(ca: TestCa, tmp_path: Path) -> None:
    client = trust_context(ca.trust)
    other = TestCa(tmp_path, "other")
    for add in (
        client.load_default_certs,
        client.set_default_verify_paths,
        lambda: client.load_verify_locations(other.trust),
        lambda: client.load_verify_locations(capath=str(tmp_path)),
        lambda: client.load_verify_locations(cadata=other.trust.read_text()),
    ):
        with pytest.raises(UsageError, match="trusts its trust file and nothing else"):
            add()
    client.load_verify_locations(cafile=str(ca.trust))
    assert len(client.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "holds no trust anchor"),
        (b"hello\n", "holds no trust anchor"),
        (b"\xff\xfe\x00", "holds no trust anchor"),
        (b"x" * 70_000, "larger than"),
    ],
)
def test_a_bad_trust_file_is_named(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "trust.pem"
    path.write_bytes(content)
    with pytest.raises(PemError, match=match):
        trust_context(path)
    with pytest.raises(PemError, match=match):
        trust_context(path, minimum_version=V1_2)


def test_a_truncated_trust_file_is_named(ca: TestCa) -> None:
    text = ca.trust.read_bytes()
    assert trust_context(ca.trust).get_ca_certs()
    for end in (len(text) // 2, len(text) - 10):
        ca.trust.write_bytes(text[:end])
        with pytest.raises(PemError, match="damaged"):
            trust_context(ca.trust)
    ca.trust.write_bytes(text + text[: len(text) // 2])
    with pytest.raises(PemError, match="damaged"):
        trust_context(ca.trust)


def test_a_context_that_is_dropped_frees_its_slot(ca: TestCa, tpm: SimulatedTpm) -> None:
    key = make_key(tpm, ca.folder)
    identity = ca.identity(key.reference, key.public_key, "device")
    server = server_context(ca.software_identity("localhost"))
    for _ in range(5):  # the TPM has three slots
        client = client_context(identity, tcti=tpm.tcti)
        handshake(client, server)
        assert len(tpm.handles("transient")) == 1
        del client
        gc.collect()
        assert tpm.handles("transient") == []


def test_trust_contexts_have_nothing_to_reload(ca: TestCa) -> None:
    client = trust_context(ca.trust)
    client.reload()
    assert client.diagnose() is None


def test_a_server_name_callback_may_choose_another_context(ca: TestCa) -> None:
    first, second = (server_context(ca.software_identity(name)) for name in ("first", "second"))
    first.sni_callback = lambda tls, name, _: setattr(tls, "context", second) if name == "second" else None
    client = client_context(ca.software_identity("me"))
    assert handshake(client, first, name="first").server == "first"
    assert handshake(client, first, name="second").server == "second"
    plain = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca.trust)
    other = ca.software_identity("third")
    plain.load_cert_chain(other.certificate, str(other.key))
    first.sni_callback = lambda tls, *_: setattr(tls, "context", plain)
    assert handshake(client, first, name="third").server == "third"
