"""Lists of revoked certificates that will not do: nobody is let in by them, at the start or later."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from support.certificates import TestCa, now
from support.crls import WEEK, Lists
from support.revoking import BOTH, NO_LIST, assert_refused, connect, make_client
from tpm_mtls.errors import CredentialError, PemError, StorageError
from tpm_mtls.files import storage_error
from tpm_mtls.openssl.crls import read_crls
from tpm_mtls.tls import IdentityContext, revocation, server_context
from tpm_mtls.tls.revocation import CRL_LIMIT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from support.clock import Clock
    from tpm_mtls.identity import Identity

LOGGER = "tpm_mtls.tls.revocation"
DAY = dt.timedelta(days=1)
STALE = "the next one was due at 20"


def damage_missing(lists: Lists) -> None:
    lists.path.unlink()


def damage_folder(lists: Lists) -> None:
    lists.path.unlink()
    lists.path.mkdir()


def damage_empty(lists: Lists) -> None:
    lists.path.write_bytes(b"")


def damage_cut(lists: Lists) -> None:
    lists.path.write_bytes(lists.path.read_bytes()[:-100])


def damage_cut_der(lists: Lists) -> None:
    lists.publish(encoding=Encoding.DER)
    lists.path.write_bytes(lists.path.read_bytes()[:-1])


def damage_more_der(lists: Lists) -> None:
    lists.publish(encoding=Encoding.DER)
    lists.path.write_bytes(lists.path.read_bytes() + b"\0")


def damage_large(lists: Lists) -> None:
    lists.path.write_bytes(lists.path.read_bytes() + b"\n" * CRL_LIMIT)


def damage_number(lists: Lists) -> None:
    der = lists.root().public_bytes(Encoding.DER)
    number = b"\x06\x03\x55\x1d\x14\x04\x03\x02\x01"  # cRLNumber: an OCTET STRING with an INTEGER of one byte
    assert number in der
    lists.path.write_bytes(der.replace(number, number[:-2] + b"\x04\x01"))


def damage_endless(lists: Lists) -> None:
    lists.path.write_bytes(by_hand(lists, next_update=False))


def damage_sha_1(lists: Lists) -> None:
    lists.path.write_bytes(by_hand(lists, sha_1=True))


def by_hand(lists: Lists, *, next_update: bool = True, sha_1: bool = False) -> bytes:
    """A list (DER) of the root with what nobody makes any more."""
    algorithm = der(0x30, bytes.fromhex("06072a8648ce3d0401" if sha_1 else "06082a8648ce3d040302"))  # ecdsa-with-SHA...
    dates = [now() - DAY, now() + DAY] if next_update else [now() - DAY]
    times = b"".join(der(0x17, f"{date:%y%m%d%H%M%SZ}".encode()) for date in dates)
    content = der(0x30, b"\x02\x01\x01" + algorithm + lists.ca.root.subject.public_bytes() + times)
    signature = lists.ca._root_key.sign(content, ec.ECDSA(hashes.SHA1() if sha_1 else hashes.SHA256()))  # noqa: S303 - it is to be refused
    return der(0x30, content + algorithm + der(0x03, b"\0" + signature))


def der(tag: int, content: bytes) -> bytes:
    assert len(content) < 256
    return bytes([tag, *([0x81] if len(content) > 127 else []), len(content)]) + content


def damage_stale(lists: Lists) -> None:
    lists.write(lists.issuing(begins=now() - 3 * DAY, ends=now() - DAY), lists.root())


def damage_stale_root(lists: Lists) -> None:
    lists.write(lists.issuing(), lists.root(begins=now() - 3 * DAY, ends=now() - DAY))


def damage_future(lists: Lists) -> None:
    lists.write(lists.issuing(begins=now() + DAY), lists.root())


def damage_delta(lists: Lists) -> None:
    lists.write(lists.issuing(extensions=[(x509.DeltaCRLIndicator(1), True)]), lists.root())


def damage_other_ca(lists: Lists) -> None:
    other = Lists(TestCa(lists.path.parent, "other"))
    lists.write(other.issuing(), other.root())


def damage_same_name(lists: Lists) -> None:
    folder = lists.path.parent / "impostor"
    folder.mkdir()
    lists.write(lists.issuing(), Lists(TestCa(folder)).root())


def damage_no_root(lists: Lists) -> None:
    lists.write(lists.issuing())


DAMAGES = {
    damage_missing: (StorageError, "no such file"),
    damage_folder: (StorageError, "is a directory"),
    damage_empty: (PemError, "holds no list of revoked certificates, or a damaged one"),
    damage_cut: (PemError, "or a damaged one"),
    damage_cut_der: (PemError, "or a damaged one"),
    damage_more_der: (PemError, "or a damaged one"),
    damage_number: (PemError, "or a damaged one"),
    damage_large: (PemError, "larger than 4194304 bytes"),
    damage_stale: (CredentialError, "is stale: " + STALE),
    damage_stale_root: (CredentialError, "is stale: " + STALE),
    damage_future: (CredentialError, "is from the future: it was issued at 20"),
    damage_endless: (PemError, "the list of /CN=test root does not say when the next one is due"),
    damage_sha_1: (CredentialError, "that of /CN=test root is signed with a hash that is not accepted"),
    damage_delta: (CredentialError, "that of /CN=test issuing CA is a delta, and not complete"),
    damage_other_ca: (CredentialError, "none is by /CN=test root, which is trusted"),
    damage_same_name: (CredentialError, "the signature of /CN=test root is wrong"),
    damage_no_root: (CredentialError, "none is by /CN=test root, which is trusted"),
}
EACH = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@EACH
def test_lists_that_will_not_do_are_refused_at_the_start(
    damage: Callable[[Lists], None], ca: TestCa, lists: Lists
) -> None:
    identity = ca.software_identity("localhost")
    server_context(identity, crl=lists.path)
    damage(lists)
    expected, match = DAMAGES[damage]
    with pytest.raises(expected, match=match) as caught:
        server_context(identity, crl=lists.path)
    assert type(caught.value) is expected
    assert caught.value.hint


@BOTH
@EACH
def test_lists_that_will_not_do_refuse_everybody_and_are_told_once(
    damage: Callable[[Lists], None],
    version: ssl.TLSVersion,
    server: IdentityContext,
    lists: Lists,
    device: Identity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client(device, version)
    assert [connect(client, server).resumed for _ in range(2)] == [False, True]
    assert server.revocation_problem is None
    damage(lists)
    with caplog.at_level(logging.INFO, LOGGER):
        for _ in range(3):
            assert_refused(client, server, NO_LIST)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        expected, match = DAMAGES[damage]
        assert match in caplog.text
        problem = server.revocation_problem
        assert type(problem) is expected
        assert problem.__traceback__ is None
        if lists.path.is_dir():
            lists.path.rmdir()
        lists.publish()
        assert [connect(client, server).resumed for _ in range(2)] == [False, True]
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert server.revocation_problem is None


def test_older_lists_are_not_believed(server: IdentityContext, lists: Lists, device: Identity) -> None:
    client = make_client(device)
    before = lists.path.read_bytes()
    lists.publish(device)
    assert_refused(client, server, "certificate revoked")
    lists.path.write_bytes(before)
    assert_refused(client, server, NO_LIST)
    assert "that of /CN=test issuing CA is older than the one before it" in str(server.revocation_problem)
    lists.publish()
    assert connect(client, server).client == "device"


def test_lists_that_end_while_the_server_runs(server: IdentityContext, clock: Clock, device: Identity) -> None:
    client = make_client(device)
    clock.offset = WEEK - dt.timedelta(minutes=1)
    assert connect(client, server).client == "device"
    clock.offset = WEEK + dt.timedelta(minutes=1)
    assert_refused(client, server, NO_LIST)
    assert f"is stale: {STALE}" in str(server.revocation_problem)
    clock.offset = dt.timedelta()
    assert connect(client, server).client == "device"


def test_lists_that_cannot_be_read_for_a_while(
    server: IdentityContext, lists: Lists, device: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stat(2) says of the file is the same afterwards."""

    def fail(path: Path, **_: int) -> bytes:
        raise storage_error(PermissionError(13, "Permission denied"), path, "read")

    client = make_client(device)
    lists.publish()
    with monkeypatch.context() as patch:
        patch.setattr(revocation, "read_capped", fail)
        assert_refused(client, server, NO_LIST)
        assert isinstance(server.revocation_problem, StorageError)
    assert connect(client, server).client == "device"


def test_lists_that_the_issuing_ca_has_not_signed_are_refused_by_the_handshake(
    ca: TestCa, lists: Lists, device: Identity, tmp_path: Path
) -> None:
    """Who has signed the issuing CA's list is known only when a client shows that CA's certificate."""
    folder = tmp_path / "impostor"
    folder.mkdir()
    impostor = Lists(TestCa(folder))
    server = server_context(ca.software_identity("localhost"), crl=lists.write(impostor.issuing(), lists.root()))
    assert_refused(make_client(device), server, NO_LIST)  # its key identifier is another one
    lists.write(lists.root())
    assert_refused(make_client(device), server, NO_LIST)
    forged = bytearray(lists.issuing().public_bytes(Encoding.DER))
    forged[-1] ^= 1
    lists.path.write_bytes(bytes(forged) + lists.root().public_bytes(Encoding.DER))
    assert_refused(make_client(device), server, "CRL signature failure")


def test_a_part_of_the_issuing_cas_certificates_is_not_enough(
    server: IdentityContext, lists: Lists, device: Identity
) -> None:
    only_cas = x509.IssuingDistributionPoint(
        full_name=None,
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=True,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    lists.write(lists.issuing(extensions=[(only_cas, True)]), lists.root())
    assert_refused(make_client(device), server, "different CRL scope")


def test_a_list_whose_extension_is_not_understood(server: IdentityContext, lists: Lists, device: Identity) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    lists.write(lists.issuing(extensions=[(unknown, True)]), lists.root())
    assert_refused(make_client(device), server, "unhandled critical CRL extension")


def test_a_list_without_a_number_is_a_first_one(ca: TestCa, lists: Lists, device: Identity) -> None:
    lists.path.write_bytes(by_hand(lists) + lists.issuing().public_bytes(Encoding.DER))
    server = server_context(ca.software_identity("localhost"), crl=lists.path)
    assert connect(make_client(device), server).client == "device"


@functools.cache
def example() -> bytes:
    """Two lists in DER form."""
    with tempfile.TemporaryDirectory() as folder:
        lists = Lists(TestCa(Path(folder)))
        lists.publish(encoding=Encoding.DER)
        return lists.path.read_bytes()


@given(st.data())
def test_damaged_lists_are_read_or_refused(data: st.DataObject) -> None:
    encoded = bytearray(example())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    shown = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    with contextlib.suppress(PemError), read_crls(shown) as read:
        assert all(isinstance(crl.number, int) and crl.next_update.tzinfo for crl in read)
