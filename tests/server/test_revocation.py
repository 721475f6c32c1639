"""CRLs: what is believed, and that everything else fails closed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from support.device_ca import DAY, DeviceCa, leaf, serial
from tpm_mtls.errors import CredentialError, PemError
from tpm_mtls_server.peer import Peer, identify
from tpm_mtls_server.revocation import CRL_LIMIT, CrlFile, RevocationLists, Verdict, read_crls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls.identity import Identity

NOW = datetime.now(UTC) + timedelta(hours=2)  # after every CRL, however long the tests before take
MINUTE = timedelta(minutes=1)


def peer_of(identity: Identity) -> Peer:
    return identify(leaf(identity).public_bytes(Encoding.DER))


def pem(*crls: bytes) -> bytes:
    return b"".join(x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM) for crl in crls)


@pytest.mark.parametrize("form", [bytes, pem], ids=["der", "pem"])
def test_a_listed_certificate_is_revoked_and_another_is_not(
    ca: DeviceCa, device: Identity, form: Callable[[bytes], bytes]
) -> None:
    lists = read_crls(form(ca.crl(serial(device), 77)), [ca.root, ca.issuing])
    assert lists.verdict(peer_of(device), now=NOW) is Verdict.REVOKED
    assert lists.verdict(peer_of(ca.device("other")), now=NOW) is Verdict.GOOD


def test_openssl_agrees(ca: DeviceCa, device: Identity) -> None:
    verify = ["openssl", "verify", "-crl_check", "-CAfile", str(ca.trust), "-CRLfile", str(ca.publish_crl())]
    assert subprocess.run([*verify, str(device.certificate)], check=False, capture_output=True).returncode == 0
    ca.publish_crl(serial(device))
    told = subprocess.run([*verify, str(device.certificate)], check=False, capture_output=True, text=True)
    assert "certificate revoked" in told.stderr


def test_a_stale_crl_says_nothing_but_its_last_instant_counts(ca: DeviceCa, device: Identity) -> None:
    lists = read_crls(ca.crl(next_update=NOW.replace(microsecond=0)), [ca.issuing])
    due = lists.crls[0].next_update
    assert lists.verdict(peer_of(device), now=due) is Verdict.GOOD
    assert lists.verdict(peer_of(device), now=due + MINUTE / 60) is Verdict.UNKNOWN
    assert lists.problem(due + MINUTE) == f"the CRL is stale: the next one was due at {due:%Y-%m-%d %H:%M:%S} UTC"


def test_a_crl_from_the_future_says_nothing_beyond_the_clock_skew(ca: DeviceCa, device: Identity) -> None:
    lists = read_crls(ca.crl(this_update=NOW), [ca.issuing])
    issued = lists.crls[0].this_update
    assert lists.verdict(peer_of(device), now=issued - 5 * MINUTE) is Verdict.GOOD
    assert lists.verdict(peer_of(device), now=issued - 6 * MINUTE) is Verdict.UNKNOWN
    assert str(lists.problem(issued - 6 * MINUTE)).startswith("the CRL is from the future: it was issued at ")


def test_the_crl_of_another_ca_says_nothing(ca: DeviceCa, tmp_path: Path) -> None:
    other = DeviceCa(tmp_path / "other", name="Other")
    lists = read_crls(other.crl(), [ca.issuing, other.issuing])
    assert lists.verdict(peer_of(ca.device()), now=NOW) is Verdict.UNKNOWN


def test_of_two_cas_with_one_name_the_key_decides(ca: DeviceCa, tmp_path: Path) -> None:
    """A CA that changed its key has the same name before and after."""
    renewed = DeviceCa(tmp_path / "renewed")
    old, new = ca.device(), renewed.device()
    only_old = read_crls(ca.crl(serial(old), serial(new)), [renewed.issuing, ca.issuing])
    assert only_old.verdict(peer_of(old), now=NOW) is Verdict.REVOKED
    assert only_old.verdict(peer_of(new), now=NOW) is Verdict.UNKNOWN
    both = read_crls(pem(ca.crl(serial(old)), renewed.crl()), [renewed.issuing, ca.issuing])
    assert both.verdict(peer_of(old), now=NOW) is Verdict.REVOKED
    assert both.verdict(peer_of(new), now=NOW) is Verdict.GOOD


def test_a_certificate_that_does_not_say_its_issuers_key_is_found_by_name(ca: DeviceCa) -> None:
    device = ca.device(authority=False)
    assert read_crls(ca.crl(serial(device)), [ca.issuing]).verdict(peer_of(device), now=NOW) is Verdict.REVOKED


def test_the_signature_must_be_by_the_ca(ca: DeviceCa, tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="the CRL's signature is wrong"):
        read_crls(DeviceCa(tmp_path / "same-name").crl(), [ca.issuing])
    with pytest.raises(CredentialError, match="the CRL is by CN=Test Issuing CA, which is none of our CAs"):
        read_crls(ca.crl(), [ca.root])


def test_a_ca_that_may_not_sign_crls_is_not_believed(ca: DeviceCa) -> None:
    device_as_ca = leaf(ca.device("Test Issuing CA", names=[x509.DNSName("ca")]))
    assert device_as_ca.subject == ca.issuing.subject
    with pytest.raises(CredentialError, match="none of our CAs"):
        read_crls(ca.crl(), [device_as_ca])


def test_a_ca_without_key_usage_and_key_identifier_may_sign(tmp_path: Path) -> None:
    bare = DeviceCa(tmp_path / "bare", bare=True)
    device = bare.device()
    lists = read_crls(bare.crl(serial(device)), [bare.issuing])
    assert lists.verdict(peer_of(device), now=NOW) is Verdict.REVOKED
    assert lists.crls[0].number == 0


def test_a_hash_other_than_sha2_is_not_accepted(ca: DeviceCa) -> None:
    with pytest.raises(CredentialError, match="signed with a hash that is not accepted"):
        read_crls(ca.crl(hash_algorithm=hashes.SHA3_256()), [ca.issuing])


def distribution_point(**scope: bool) -> x509.IssuingDistributionPoint:
    values = {
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    } | scope
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier("http://127.0.0.1/crl")],
        relative_name=None,
        only_some_reasons=None,
        **values,
    )


@pytest.mark.parametrize("scope", ["only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs"])
def test_a_partial_crl_is_refused(ca: DeviceCa, scope: str) -> None:
    read_crls(ca.crl(extensions=[(distribution_point(), True)]), [ca.issuing])
    read_crls(ca.crl(extensions=[(distribution_point(only_contains_user_certs=True), True)]), [ca.issuing])
    with pytest.raises(CredentialError, match="covers only a part"):
        read_crls(ca.crl(extensions=[(distribution_point(**{scope: True}), True)]), [ca.issuing])


def test_a_critical_extension_that_is_not_understood_is_refused(ca: DeviceCa) -> None:
    with pytest.raises(CredentialError, match=r"critical extension that is not understood \(2\.5\.29\.27\)"):
        read_crls(ca.crl(extensions=[(x509.DeltaCRLIndicator(1), True)]), [ca.issuing])


def test_a_critical_entry_extension_that_is_not_understood_is_refused(ca: DeviceCa) -> None:
    issuer = x509.CertificateIssuer([x509.DirectoryName(ca.root.subject)])
    with pytest.raises(CredentialError, match=r"critical entry extension that is not understood \(2\.5\.29\.29\)"):
        read_crls(ca.crl(5, entry_extensions=[(issuer, True)]), [ca.issuing])
    on_hold = x509.CRLReason(x509.ReasonFlags.certificate_hold)
    lists = read_crls(ca.crl(5, entry_extensions=[(on_hold, False)]), [ca.issuing])
    assert lists.crls[0].serials == {5}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, x509.Certificate]:
    ca = DeviceCa(tmp_path_factory.mktemp("ca"))
    return ca.crl(1, 2, 3), ca.issuing


@given(data=st.data())
def test_no_damaged_crl_is_believed(published: tuple[bytes, x509.Certificate], data: st.DataObject) -> None:
    """Every octet of a CRL is covered by its signature or makes it unreadable."""
    good, authority = published
    form = data.draw(st.sampled_from([bytes, pem]))(good)
    position = data.draw(st.integers(0, len(form) - 1))
    damaged = form[:position] + data.draw(st.binary(max_size=4)) + form[position + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(CredentialError):
        assert read_crls(damaged, [authority]) == read_crls(good, [authority])


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(PemError, match="the CRL is damaged"):
        read_crls(data, [])


# the file


@pytest.fixture
def crl_file(ca: DeviceCa) -> CrlFile:
    return CrlFile(ca.crl_file, [ca.issuing], clock=lambda: NOW)


def test_the_file_is_read_again_when_it_changes(ca: DeviceCa, device: Identity, crl_file: CrlFile) -> None:
    peer = peer_of(device)
    assert crl_file.verdict(peer) is Verdict.GOOD
    ca.publish_crl(serial(device))
    assert crl_file.verdict(peer) is Verdict.REVOKED
    before = crl_file._lists
    assert crl_file.verdict(peer) is Verdict.REVOKED
    assert crl_file._lists is before
    ca.crl_file.write_bytes(pem(ca.crl()))  # in place, too
    assert crl_file.verdict(peer) is Verdict.GOOD


def test_a_file_of_the_same_size_and_time_is_noticed(ca: DeviceCa, device: Identity, crl_file: CrlFile) -> None:
    peer = peer_of(device)
    ca.crl_file.write_bytes(ca.crl(2**150 + 7, number=1))
    assert crl_file.verdict(peer) is Verdict.GOOD
    status = ca.crl_file.stat()
    other = ca.crl_file.with_name("other")
    other.write_bytes(ca.crl(serial(device), number=1).ljust(status.st_size, b"\0")[: status.st_size])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(ca.crl_file)
    assert crl_file.verdict(peer) is not Verdict.GOOD


def test_an_older_crl_than_the_last_is_not_believed(ca: DeviceCa, device: Identity, crl_file: CrlFile) -> None:
    old = ca.crl(number=10)
    ca.crl_file.write_bytes(ca.crl(serial(device), number=11))
    assert crl_file.verdict(peer_of(device)) is Verdict.REVOKED
    ca.crl_file.write_bytes(old)
    assert crl_file.problem() == "the CRL is older than the one before it"
    assert crl_file.verdict(peer_of(device)) is Verdict.UNKNOWN
    ca.crl_file.write_bytes(ca.crl(number=11))
    assert crl_file.problem() is None


def test_half_a_file_is_not_believed_and_the_whole_one_is(ca: DeviceCa, device: Identity, crl_file: CrlFile) -> None:
    whole = pem(ca.crl(serial(device)))
    for size in (0, 1, len(whole) // 2, len(whole) - 30):
        ca.crl_file.write_bytes(whole[:size])
        assert crl_file.problem() == "the CRL is damaged"
        assert crl_file.verdict(peer_of(device)) is Verdict.UNKNOWN
    ca.crl_file.write_bytes(whole)
    assert crl_file.verdict(peer_of(device)) is Verdict.REVOKED


def test_an_oversized_file_is_refused(ca: DeviceCa, crl_file: CrlFile) -> None:
    assert crl_file.problem() is None
    with ca.crl_file.open("ab") as file:
        file.truncate(CRL_LIMIT + 1)
    assert f"larger than {CRL_LIMIT} bytes" in str(crl_file.problem())


def test_a_crl_without_next_update_is_refused(ca: DeviceCa) -> None:
    """RFC 5280, 5.1.2.5, demands it, so no tool leaves it out: it is cut out of the bytes."""
    der = ca.crl(*range(1, 30))  # so that both lengths below have two bytes
    parsed = x509.load_der_x509_crl(der)
    due = parsed.next_update_utc
    assert due is not None
    field = b"\x17\x0d" + f"{due:%y%m%d%H%M%SZ}".encode()
    assert der.count(field) == 1
    body = der.replace(field, b"")
    # the two outer lengths: CertificateList and tbsCertList
    outer, inner = int.from_bytes(body[2:4]) - len(field), int.from_bytes(body[6:8]) - len(field)
    body = body[:2] + outer.to_bytes(2) + body[4:6] + inner.to_bytes(2) + body[8:]
    with pytest.raises(PemError, match="does not say when the next one is due"):
        read_crls(body, [ca.issuing])


def test_no_crls_know_nobody(device: Identity) -> None:
    assert RevocationLists(()).verdict(peer_of(device), now=NOW) is Verdict.UNKNOWN
    assert RevocationLists(()).problem(NOW + DAY) is None
