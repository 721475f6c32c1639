"""A server refuses whom the CA has revoked, in resumed sessions too, and everybody when it cannot know."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from support.authority import PASSPHRASE, make_ca
from support.certificates import TestCa, write_software_key
from support.crls import WEEK, Lists, leaf
from support.handshakes import attempt, handshake
from support.revoking import BOTH, NO_LIST, V1_2, assert_refused, connect, make_client
from tpm_mtls.errors import CredentialError, UsageError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import ClientCertificates, IdentityContext, client_context, server_context, trust_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography import x509

    from support.clock import Clock


# who is let in


@BOTH
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER], ids=["PEM", "DER"])
def test_a_revoked_device_is_refused_and_told_why(
    encoding: Encoding, version: ssl.TLSVersion, ca: TestCa, lists: Lists, device: Identity
) -> None:
    lists.publish(device, encoding=encoding)
    server = server_context(ca.software_identity("localhost"), minimum_version=V1_2, crl=lists.path)
    assert handshake(make_client(ca.software_identity("other"), version), server).client == "other"
    assert_refused(make_client(device, version), server, "certificate revoked")
    with pytest.raises(ssl.SSLError, match="alert certificate revoked"):
        handshake(make_client(device, version), server)


def test_without_lists_a_revoked_device_is_let_in(ca: TestCa, lists: Lists, device: Identity) -> None:
    lists.publish(device)
    server = server_context(ca.software_identity("localhost"))
    assert handshake(make_client(device), server).client == "device"
    assert server.revocation_problem is None
    assert not server.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN


def test_a_device_of_a_revoked_intermediate_is_refused(server: IdentityContext, lists: Lists, device: Identity) -> None:
    client = make_client(device)
    assert connect(client, server).client == "device"
    lists.publish(issuing=True)
    assert_refused(client, server, "certificate revoked")


def test_the_flags_are_otherwise_as_before(ca: TestCa, server: IdentityContext) -> None:
    plain = server_context(ca.software_identity("localhost"))
    assert server.verify_flags == plain.verify_flags | ssl.VERIFY_CRL_CHECK_CHAIN
    assert plain.verify_flags & ssl.VERIFY_X509_STRICT
    assert plain.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN


def test_the_check_cannot_be_taken_away(server: IdentityContext, lists: Lists, device: Identity) -> None:
    lists.publish(device)
    server.verify_flags = ssl.VERIFY_DEFAULT
    assert_refused(make_client(device), server, "certificate revoked")


def test_clients_that_need_no_certificate_are_refused_only_with_a_revoked_one(
    ca: TestCa, lists: Lists, device: Identity, clock: Clock
) -> None:
    identity = ca.software_identity("localhost")
    lists.publish(device)
    server = server_context(identity, client_certificates=ClientCertificates.OPTIONAL, crl=lists.path, clock=clock)
    nobody = trust_context(ca.trust)
    assert handshake(nobody, server).client is None
    assert_refused(make_client(device), server, "certificate revoked")
    clock.offset = 2 * WEEK
    assert handshake(nobody, server).client is None
    assert_refused(make_client(ca.software_identity("other")), server, NO_LIST)
    with pytest.raises(UsageError, match="of no use without client certificates"):
        server_context(identity, client_certificates=ClientCertificates.NONE, crl=lists.path)


def test_the_projects_own_ca_and_its_two_lists_in_der(tmp_path: Path) -> None:
    """``issuing.crl`` and ``root.crl`` as the CA publishes them, one after the other in one file."""
    folder = make_ca(tmp_path / "ca")
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes(PASSPHRASE.value)

    def pki(command: str, *options: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "pki", command, "--ca-dir", str(folder), *options],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def issue(profile: str, name: str) -> Identity:
        key, public, chain = (tmp_path / f"{name}.{end}" for end in ("key.pem", "pub.pem", "pem"))
        private = ec.generate_private_key(ec.SECP256R1())
        write_software_key(key, private)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
        secret = ("--passphrase", f"file:{passphrase}")
        pki("issue", "--public-key", str(public), "--profile", profile, "--name", name, "--out", str(chain), *secret)
        return Identity(KeyFile(key), chain, folder / "root.pem")

    def fetch() -> None:
        for name, options in (("issuing", ()), ("root", ("--root",))):
            pki("crl", "--der", "--out", str(tmp_path / f"{name}.crl"), *options)
        temporary = tmp_path / "lists.tmp"
        temporary.write_bytes((tmp_path / "issuing.crl").read_bytes() + (tmp_path / "root.crl").read_bytes())
        temporary.replace(tmp_path / "lists.crl")

    backend, lost, kept = issue("server", "localhost"), issue("device", "lost"), issue("device", "kept")
    pki("crl", "--passphrase", f"file:{passphrase}")
    fetch()
    server = server_context(backend, crl=tmp_path / "lists.crl")
    clients = [client_context(identity) for identity in (lost, kept)]
    assert [connect(client, server).client for client in clients] == ["lost", "kept"]
    pki("revoke", "--device", "lost", "--passphrase", f"file:{passphrase}")
    fetch()
    assert_refused(clients[0], server, "certificate revoked")
    assert connect(clients[1], server).client == "kept"
    with pytest.raises(CredentialError, match=r"none is by /CN=Example CA Root, which is trusted"):
        server_context(backend, crl=tmp_path / "issuing.crl")


# sessions


@BOTH
def test_a_revoked_device_resumes_no_session(
    version: ssl.TLSVersion, server: IdentityContext, lists: Lists, ca: TestCa, device: Identity
) -> None:
    client, other = make_client(device, version), make_client(ca.software_identity("other"), version)
    for each in (client, other):
        assert [connect(each, server).resumed for _ in range(3)] == [False, True, True]
    lists.publish(device)
    assert_refused(client, server, "certificate revoked")
    assert [connect(other, server).resumed for _ in range(2)] == [False, True]


@BOTH
def test_sessions_are_resumed_as_long_as_the_lists_are_the_same(
    version: ssl.TLSVersion, server: IdentityContext, lists: Lists, device: Identity
) -> None:
    client = make_client(device, version)
    assert [connect(client, server).resumed for _ in range(2)] == [False, True]
    os.utime(lists.path)  # written again, with the same content
    assert connect(client, server).resumed


@BOTH
def test_no_session_is_resumed_when_the_lists_have_ended(
    version: ssl.TLSVersion, server: IdentityContext, clock: Clock, device: Identity
) -> None:
    client = make_client(device, version)
    assert [connect(client, server).resumed for _ in range(2)] == [False, True]
    clock.offset = 2 * WEEK
    assert_refused(client, server, NO_LIST)


@BOTH
def test_a_handshake_that_began_before_the_revocation_leads_to_no_session_after_it(
    version: ssl.TLSVersion, server: IdentityContext, lists: Lists, ca: TestCa, device: Identity
) -> None:
    """The ticket is made after the lists were replaced, by a connection that has verified by the old ones."""
    client = make_client(device, version)
    near, far = socket.socketpair()
    waiting = server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    lists.publish(device)
    assert handshake(make_client(ca.software_identity("other")), server).client == "other"  # the new lists are there

    def serve() -> None:
        waiting.do_handshake()
        waiting.sendall(b"welcome\n")
        waiting.recv(1)
        waiting.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(near, server_hostname="localhost") as tls:
        assert tls.recv(16) == b"welcome\n"
        tls.sendall(b".")
    thread.join()
    assert len(client.sessions) == 1
    assert_refused(client, server, "certificate revoked")


# a server that runs


@BOTH
def test_replaced_lists_count_for_the_next_handshake(
    version: ssl.TLSVersion, server: IdentityContext, lists: Lists, ca: TestCa, device: Identity
) -> None:
    client = make_client(device, version)
    assert connect(client, server).client == "device"
    lists.publish(ca.software_identity("lost"))
    assert connect(client, server).client == "device"
    lists.publish(device)
    assert_refused(client, server, "certificate revoked")


# trust anchors that are no root


def trusting(ca: TestCa, *anchors: x509.Certificate) -> Identity:
    path = ca.folder / "anchors.pem"
    path.write_bytes(b"".join(anchor.public_bytes(Encoding.PEM) for anchor in anchors))
    return replace(ca.software_identity("localhost"), trust=path)


def test_an_issuing_ca_that_is_trusted_itself_needs_no_list_of_its_root(
    ca: TestCa, lists: Lists, device: Identity
) -> None:
    identity = trusting(ca, ca.issuing)
    server = server_context(identity, crl=lists.write(lists.issuing()))
    client = make_client(device)
    assert connect(client, server).client == "device"
    lists.write(lists.issuing(device), lists.root())
    assert_refused(client, server, "certificate revoked")
    lists.write(lists.issuing(), lists.root(ca.issuing))
    assert_refused(client, server, "unable to get")  # it is no anchor any more


def test_a_revoked_issuing_ca_is_refused_although_it_is_trusted_itself(
    ca: TestCa, lists: Lists, device: Identity
) -> None:
    """OpenSSL ends the chain at the first anchor, and the root's list would not be looked at."""
    server = server_context(trusting(ca, ca.root, ca.issuing), crl=lists.path)
    client = make_client(device)
    assert connect(client, server).client == "device"
    lists.publish(device)
    assert_refused(client, server, "certificate revoked")
    lists.publish(issuing=True)
    assert_refused(client, server, "certificate revoked")


def test_a_device_that_is_an_anchor_itself_cannot_be_looked_up(ca: TestCa, lists: Lists, device: Identity) -> None:
    with pytest.raises(CredentialError, match="none is by /CN=device, which is trusted"):
        server_context(trusting(ca, ca.root, leaf(device)), crl=lists.path)


# in other kinds of server


def test_an_asyncio_server_refuses_a_revoked_device(
    server: IdentityContext, lists: Lists, device: Identity, ca: TestCa
) -> None:
    clients = [make_client(identity) for identity in (device, ca.software_identity("other"))]

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        await writer.drain()
        writer.close()

    def visit(port: int, client: IdentityContext) -> bool | None:
        """Whether it was resumed; none if it was refused, of which asyncio sends no alert."""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            return bool(tls.session_reused) if tls.recv(16) else None

    async def converse() -> None:
        backend = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
        async with backend:
            port = backend.sockets[0].getsockname()[1]
            for client in clients:
                assert [await asyncio.to_thread(visit, port, client) for _ in range(2)] == [False, True]
            lists.publish(device)
            assert await asyncio.to_thread(visit, port, clients[0]) is None
            assert [await asyncio.to_thread(visit, port, clients[1]) for _ in range(2)] == [False, True]

    asyncio.run(converse())


@BOTH
@pytest.mark.parametrize("first", ["with lists", "without"])
def test_a_context_that_a_server_name_callback_chooses_looks_at_its_lists(
    first: str, version: ssl.TLSVersion, server: IdentityContext, ca: TestCa, lists: Lists, device: Identity
) -> None:
    crl = lists.path if first == "with lists" else None
    listening = server_context(ca.software_identity("first"), minimum_version=V1_2, crl=crl)
    listening.sni_callback = lambda tls, *_: setattr(tls, "context", server)
    client = make_client(device, version)
    assert [connect(client, listening).resumed for _ in range(2)] == [False, crl is not None]
    lists.publish(device)
    assert_refused(client, listening, "certificate revoked")
    lists.publish(issuing=True)
    assert_refused(client, listening, "certificate revoked")
    lists.path.unlink()
    assert_refused(client, listening, NO_LIST)


def test_a_chosen_context_is_followed_in_asyncio_too(
    server: IdentityContext, ca: TestCa, lists: Lists, device: Identity
) -> None:
    first = server_context(ca.software_identity("first"))
    first.sni_callback = lambda tls, *_: setattr(tls, "context", server)
    lists.publish(device)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = make_client(device).wrap_bio(to_client, to_server, server_hostname="localhost")
    far = first.wrap_bio(to_server, to_client, server_side=True)
    for end in (near, far):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    assert far.context is server
    near.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        far.do_handshake()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_worker_follows_the_lists(server: IdentityContext, lists: Lists, device: Identity) -> None:
    client = make_client(device)
    assert [connect(client, server).resumed for _ in range(2)] == [False, True]
    assert in_child(lambda: connect(client, server).client == "device")
    lists.publish(device)
    assert in_child(lambda: attempt(client, server, resume=True)[0] is None)
    assert_refused(client, server, "certificate revoked")


def in_child(question: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if question() else 1)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_lists_may_be_replaced_while_other_threads_make_handshakes(
    server: IdentityContext, ca: TestCa, lists: Lists, device: Identity
) -> None:
    lost = ca.software_identity("lost")
    lists.publish(lost)
    unexpected: list[object] = []
    end = threading.Event()

    def visit(identity: Identity, *, refused: bool) -> None:
        client = make_client(identity)
        while not end.is_set():
            seen, _, error = attempt(client, server, resume=True)
            if (seen is None) is not refused:
                unexpected.append(error)

    threads = [threading.Thread(target=visit, args=(who,), kwargs={"refused": who is lost}) for who in (lost, device)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        lists.publish(lost)
        connect(make_client(device), server)
    end.set()
    for thread in threads:
        thread.join()
    assert unexpected == []
