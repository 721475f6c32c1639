"""The registry in the store: makers' roots, allow-list, groups, approvals, bindings, and what enrollments change."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from support.authority import NOW, new_key
from support.evidence import (
    Case,
    Certifier,
    SoftwareTpm,
    ca_extensions,
    der,
    ek_extensions,
    good_case,
    new_root,
)
from tpm_mtls.certificates import certificates_pem, spki
from tpm_mtls.errors import CredentialError, EvidenceRefusedError, PemError, StateError, StorageError, UsageError
from tpm_mtls.evidence import Evidence
from tpm_mtls.evidence_checks import Residency
from tpm_mtls_pki import (
    allow_list,
    approvals,
    attestations,
    audit,
    bindings,
    ek_roots,
    groups,
    profiles,
    records,
    registry,
    schema,
)
from tpm_mtls_pki.approvals import State
from tpm_mtls_pki.csr import key_digest
from tpm_mtls_pki.database import Database, sqlite_url
from tpm_mtls_pki.evidence import Challenge, Terms, Verdict
from tpm_mtls_pki.groups import ApprovalRule, Group, Naming
from tpm_mtls_pki.policy import Permit, Reason, Refusal, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tpm_mtls_pki.profiles import Issuer

A, B = "a" * 64, "b" * 64
DIGEST = "d" * 64


@pytest.fixture(scope="module")
def maker() -> Certifier:
    return new_root()


@pytest.fixture(scope="module")
def case(maker: Certifier) -> Case:
    return good_case(SoftwareTpm(), maker)


@pytest.fixture(scope="module")
def verdict(case: Case) -> Verdict:
    return case.judge()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """A writing transaction on an empty store."""
    database = Database(sqlite_url(tmp_path / "store.sqlite"))
    database.create("a" * 64)
    with database.writing() as opened:
        yield opened
    database.close()


def events(connection: Connection) -> list[tuple[str, str, object]]:
    return [(each.event, each.subject, each.detail.get("check")) for each in audit.entries(connection)]


def last(connection: Connection) -> audit.Entry:
    return list(audit.entries(connection))[-1]


def store_certificate(connection: Connection, issuer: Issuer, subject: str, **options: Any) -> records.Record:  # noqa: ANN401 - of the profile
    """A certificate in the store."""
    key, profile, now = (
        options.get("key") or new_key(),
        options.get("profile", profiles.DEVICE),
        options.get("now", NOW),
    )
    certificate = profiles.build_leaf(profile, profiles.Subject.device(subject), key.public_key(), issuer, now=now)
    digest = key_digest(key.public_key())
    facts = {"profile": profile.name, "subject": subject, "key_digest": digest, "grounds": "test"}
    serial = records.add(connection, certificate, now=now, **facts)
    found = records.find(connection, serial)
    assert found is not None
    return found


# --- makers' roots


def test_self_signed_certificates_become_roots_and_others_intermediates(
    connection: Connection, maker: Certifier
) -> None:
    between = maker.below("Between")
    added = ek_roots.add(connection, [between.certificate, maker.certificate, maker.certificate], now=NOW)
    assert [each.is_root for each in added] == [False, True, True]
    trust = ek_roots.trust(connection)
    assert (trust.roots, trust.intermediates) == ((maker.certificate,), (between.certificate,))
    assert ek_roots.trust(connection) is trust  # parsed once
    ek_roots.add(connection, [maker.certificate], now=NOW)
    assert [each[:2] for each in events(connection)] == [
        ("ek-root-added", "CN=Between"),
        ("ek-root-added", "CN=Maker Root"),
    ]
    fingerprint = next(each.fingerprint for each in ek_roots.listing(connection) if each.is_root)
    assert ek_roots.remove(connection, fingerprint[:8].upper(), now=NOW).certificate == maker.certificate
    assert ek_roots.trust(connection).roots == ()
    assert last(connection).event == "ek-root-removed"
    for wrong in (fingerprint, fingerprint[:7], ""):
        with pytest.raises(StateError, match="no single TPM maker's CA has a fingerprint that begins with"):
            ek_roots.remove(connection, wrong, now=NOW)


def test_a_certificate_that_only_looks_self_signed_is_no_root(connection: Connection, maker: Certifier) -> None:
    """It has the root's name as its issuer's and its own."""
    impostor = maker.below("Maker Root")
    assert [each.is_root for each in ek_roots.add(connection, [impostor.certificate], now=NOW)] == [False]


def test_what_is_no_cas_certificate_is_not_trusted(connection: Connection, maker: Certifier) -> None:
    for extensions in (ek_extensions(), ca_extensions(constraints=None), ca_extensions(usage=ek_extensions()[1])):
        wrong = maker.below("Leaf", extensions).certificate
        with pytest.raises(CredentialError, match="CN=Leaf is not a CA's certificate"):
            ek_roots.add(connection, [wrong], now=NOW)
    assert ek_roots.listing(connection) == []


def test_a_ca_with_damaged_extensions_is_refused(connection: Connection, maker: Certifier) -> None:
    cut = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), b"\x30\x03\x01\x01")  # basicConstraints, cut
    wrong = maker.below("Damaged", [(cut, False)]).certificate
    with pytest.raises(PemError, match="the certificate CN=Damaged is damaged"):
        ek_roots.add(connection, [wrong], now=NOW)


def test_roots_are_read_as_makers_publish_them(maker: Certifier) -> None:
    pem = certificates_pem([maker.certificate, maker.certificate])
    assert len(ek_roots.parse_file(pem, name="f")) == 2
    assert ek_roots.parse_file(maker.der, name="f") == (maker.certificate,)
    for wrong, message in ((b"", "f holds no certificate"), (b"x", "f holds no"), (b"x" * 100_000, "larger than")):
        with pytest.raises(PemError, match=message):
            ek_roots.parse_file(wrong, name="f")


# --- groups


def test_a_group_that_nobody_made_has_the_usual_rules(connection: Connection) -> None:
    usual = Group("x", ApprovalRule.UNLISTED, Naming.EK, imported=False, policies=frozenset({b""}))
    assert groups.find(connection, "x") == usual
    assert groups.listing(connection) == [dataclasses.replace(usual, name="default")]
    other = Group("x", ApprovalRule.ALWAYS, Naming.ASKED, imported=True, policies=frozenset({b"", b"p" * 32}))
    groups.save(connection, usual, now=NOW)
    groups.save(connection, other, now=NOW)
    assert groups.find(connection, "x") == other
    assert [each.name for each in groups.listing(connection)] == ["default", "x"]
    assert last(connection).detail == {
        "approval": "always",
        "naming": "asked",
        "imported": True,
        "policies": ["", (b"p" * 32).hex()],
    }
    groups.save(connection, dataclasses.replace(other, policies=None), now=NOW)
    assert groups.find(connection, "x").policies is None
    assert last(connection).detail["policies"] == ["any"]


@pytest.mark.parametrize("name", ["", "A", "a b", "a" * 33, ".a", "ä"])
def test_group_names_are_checked(connection: Connection, name: str) -> None:
    with pytest.raises(UsageError, match="not a group's name"):
        groups.save(connection, Group(name), now=NOW)


def test_a_groups_policies_are_checked(connection: Connection) -> None:
    for policies in (frozenset[bytes](), frozenset(bytes([each]) * 32 for each in range(17))):
        with pytest.raises(UsageError, match="a group has 1 to 16 key policies"):
            groups.save(connection, Group("x", policies=policies), now=NOW)
    assert groups.parse_policies(["none", "ab" * 32]) == {b"", b"\xab" * 32}
    assert groups.parse_policies(["any"]) is None
    with pytest.raises(UsageError, match="contradictory"):
        groups.parse_policies(["any", "none"])
    assert groups.parse_policy("none") == b""
    assert groups.parse_policy("AB" * 32) == b"\xab" * 32
    for text, message in (("xyz", "not a policy digest"), ("abcd", "no policy digest has 2"), ("", "has 0 bytes")):
        with pytest.raises(UsageError, match=message):
            groups.parse_policy(text)


# --- allow-list


def test_the_allow_list_knows_each_key_and_each_device_once(connection: Connection) -> None:
    allow_list.add(connection, [allow_list.Entry(A, "dev", "g"), allow_list.Entry(B)], now=NOW)
    assert allow_list.find(connection, A) == allow_list.Entry(A, "dev", "g", NOW)
    assert allow_list.of_device(connection, "dev") == allow_list.find(connection, A)
    assert [each.ek_hash for each in allow_list.listing(connection)] == [A, B]
    allow_list.remove(connection, B, now=NOW)
    assert allow_list.find(connection, B) is None
    assert [each[:2] for each in events(connection)] == [
        ("allow-added", "dev"),
        ("allow-added", B),
        ("allow-removed", B),
    ]
    with pytest.raises(StateError, match="the allow-list has no"):
        allow_list.remove(connection, B, now=NOW)


@pytest.mark.parametrize("entry", [allow_list.Entry(A), allow_list.Entry(B, "dev")])
def test_nobody_on_the_list_is_replaced(connection: Connection, entry: allow_list.Entry) -> None:
    allow_list.add(connection, [allow_list.Entry(A, "dev")], now=NOW)
    with pytest.raises(StateError, match="has that endorsement key, or another one for its device"):
        allow_list.add(connection, [entry], now=NOW)


def test_a_manifest_gives_names_and_groups() -> None:
    text = f'ek_hash,device,group\r\n{A.upper()},dev-1,line-a\r\n"{B}",,\r\n'
    wanted = [allow_list.Entry(A, "dev-1", "line-a"), allow_list.Entry(B, None, "default")]
    assert allow_list.parse_manifest(text.encode()) == wanted
    assert allow_list.parse_manifest(b"\xef\xbb\xbf" + text.encode()) == wanted  # as spreadsheets write it
    colons = ":".join(A[i : i + 2] for i in range(0, 64, 2))
    assert allow_list.parse_manifest(f" device , ek_hash\ndev, {colons}\n".encode()) == [allow_list.Entry(A, "dev")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line names other columns"),
        (f"{A},dev\n", "first line names other columns"),
        (f"ek_hash,name\n{A},dev\n", "first line names other columns"),
        (f"ek_hash,ek_hash\n{A},{A}\n", "first line names other columns"),
        ("ek_hash\n", "the manifest has no entries"),
        (f"ek_hash\n{A},dev\n", "line 2 of the manifest has another number of columns"),
        (f"ek_hash,device\n{A}\n", "line 2 of the manifest has another number of columns"),
        (f"ek_hash\n{A}\n{B[:-1]}\n", "line 3 of the manifest: not the hash of an endorsement key"),
        (f"ek_hash,device\n{A},Dev\n", "line 2 of the manifest: not a device name: 'Dev'"),
        (f"ek_hash,group\n{A},G\n", "line 2 of the manifest: not a group's name"),
        (f"ek_hash\n{A}\n{A}\n", f"the manifest has {A} twice"),
        (f"ek_hash,device\n{A},dev\n{B},dev\n", "the manifest has dev twice"),
        (f'ek_hash\n"{A}\n', "that is no CSV file"),
    ],
)
def test_a_manifest_with_a_fault_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        allow_list.parse_manifest(text.encode())


def test_a_manifest_is_utf_8_and_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="that is no CSV file"):
        allow_list.parse_manifest(b"ek_hash\n\xff\n")
    monkeypatch.setattr(allow_list, "MANIFEST_LIMIT", 10)
    with pytest.raises(UsageError, match="a manifest of more than 10 bytes"):
        allow_list.parse_manifest(b"ek_hash\n" + A.encode())


# --- bindings


def test_a_binding_stands_until_it_is_released_and_is_kept_for_ever(connection: Connection) -> None:
    bindings.bind(connection, "dev", A, now=NOW)
    wanted = bindings.Binding("dev", A, NOW, None)
    assert bindings.of_device(connection, "dev") == bindings.of_tpm(connection, A) == wanted
    assert bindings.of_device(connection, "other") is None
    later = NOW + timedelta(hours=1)
    assert bindings.release(connection, "dev", now=later) == wanted
    assert bindings.of_device(connection, "dev") is None
    assert bindings.of_tpm(connection, A) is None
    assert bindings.was_bound(connection, "dev")
    assert not bindings.was_bound(connection, "other")
    bindings.bind(connection, "dev", B, now=later)
    assert bindings.listing(connection) == [
        dataclasses.replace(wanted, released_at=later),
        bindings.Binding("dev", B, later, None),
    ]
    assert events(connection) == [
        ("device-bound", "dev", 8),
        ("device-released", "dev", None),
        ("device-bound", "dev", 8),
    ]
    with pytest.raises(StateError, match="other is bound to no TPM"):
        bindings.release(connection, "other", now=NOW)


def test_a_release_takes_the_old_tpms_way_back(connection: Connection) -> None:
    allow_list.add(connection, [allow_list.Entry(A, "dev"), allow_list.Entry(B)], now=NOW)
    approvals.request(connection, A, asked="dev", endorsed_by="x", now=NOW)
    bindings.bind(connection, "dev", A, now=NOW)
    bindings.release(connection, "dev", now=NOW)
    assert allow_list.find(connection, A) is None
    assert approvals.find(connection, A) is None
    assert allow_list.find(connection, B) is not None


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM bindings",
        "UPDATE bindings SET device = 'x', released_at = 1",
        "UPDATE bindings SET ek_hash = 'x', released_at = 1",
        "UPDATE bindings SET bound_at = 1, released_at = 1",
        "UPDATE bindings SET device = 'x'",
        "INSERT INTO bindings (device, ek_hash, bound_at) VALUES ('dev', 'x', 1)",
        "INSERT INTO bindings (device, ek_hash, bound_at) VALUES ('x', 'tpm', 1)",
    ],
)
def test_the_store_itself_keeps_bindings_immutable(tmp_path: Path, statement: str) -> None:
    database = Database(sqlite_url(tmp_path / "x.sqlite"))
    database.create("a" * 64)
    with database.writing() as connection:
        bindings.bind(connection, "dev", "tpm", now=NOW)
    with pytest.raises(StorageError), database.writing() as connection:
        connection.exec_driver_sql(statement)
    with database.writing() as connection:
        bindings.release(connection, "dev", now=NOW)
    with pytest.raises(StorageError, match="a binding can only be released"), database.writing() as connection:
        connection.exec_driver_sql("UPDATE bindings SET released_at = NULL")
    database.close()


# --- approvals


def test_a_request_waits_is_granted_and_used_up(connection: Connection) -> None:
    first = approvals.request(connection, A, asked="dev", endorsed_by="CN=M", now=NOW)
    assert first == approvals.Approval(1, A, "dev", "CN=M", NOW, State.WAITING, None, None)
    assert approvals.request(connection, A, asked="dev", endorsed_by="CN=M", now=NOW + timedelta(1)) == first
    changed = approvals.request(connection, A, asked="dev-2", endorsed_by="CN=M", now=NOW)
    assert changed == dataclasses.replace(first, asked="dev-2")
    granted = approvals.grant(connection, 1, device=None, now=NOW)
    assert approvals.find(connection, A) == granted
    assert granted == dataclasses.replace(changed, state=State.GRANTED, decided_at=NOW, device="dev-2")
    # what it asks for now makes no difference
    assert approvals.request(connection, A, asked="evil", endorsed_by="CN=M", now=NOW) == granted
    with pytest.raises(StateError, match="request 1 is granted already"):
        approvals.grant(connection, 1, device=None, now=NOW)
    approvals.use_up(connection, A)
    assert approvals.listing(connection) == []
    assert [each[0] for each in events(connection)] == ["approval-requested", "approval-granted"]
    assert [each.detail["request"] for each in audit.entries(connection)] == [1, 1]


def test_a_number_names_one_request_for_ever(connection: Connection) -> None:
    """Whoever repeats a command of yesterday approves no other TPM by it."""
    for number, ek_hash in enumerate((A, B, A), 1):
        assert approvals.request(connection, ek_hash, asked="dev", endorsed_by="CN=M", now=NOW)
        approvals.grant(connection, number, device=f"dev-{number}", now=NOW)
        approvals.use_up(connection, ek_hash)
        for again in (approvals.grant, approvals.deny):
            with pytest.raises(StateError, match=f"request {number} is finished: it was granted to dev-{number}\n"):
                again(connection, number, now=NOW, **({"device": "evil"} if again is approvals.grant else {}))
    waiting = approvals.request(connection, B, asked=None, endorsed_by="CN=M", now=NOW)
    assert waiting is not None
    assert waiting.id == 4
    approvals.use_up(connection, B)  # it came by another way, with a token say
    with pytest.raises(StateError, match="request 4 is finished\n"):
        approvals.deny(connection, 4, now=NOW)
    with pytest.raises(StateError, match="there is no request 5"):
        approvals.deny(connection, 5, now=NOW)


def test_a_store_from_before_gives_no_number_again(connection: Connection) -> None:
    """There the database chose the number, and the audit log did not have that of a request."""
    for ek_hash, asked in ((A, "dev"), (B, "dev-2")):
        values = {"ek_hash": ek_hash, "asked": asked, "endorsed_by": "x", "requested_at": 1, "state": "waiting"}
        connection.execute(schema.approvals.insert().values(values))
        audit.append(connection, "approval-requested", asked, {"ek": ek_hash}, now=NOW)
    approvals.grant(connection, 2, device=None, now=NOW)
    approvals.use_up(connection, B)
    new = approvals.request(connection, "c" * 64, asked=None, endorsed_by="x", now=NOW)
    assert new is not None
    assert new.id == 3
    assert [each.id for each in approvals.listing(connection)] == [1, 3]
    with pytest.raises(StateError, match="request 2 is finished: it was granted to dev-2"):
        approvals.grant(connection, 2, device=None, now=NOW)


def test_a_request_is_denied_until_it_is_granted(connection: Connection) -> None:
    approvals.request(connection, A, asked=None, endorsed_by="CN=M", now=NOW)
    approvals.deny(connection, 1, now=NOW)
    with pytest.raises(StateError, match="request 1 is denied already"):
        approvals.deny(connection, 1, now=NOW)
    with pytest.raises(UsageError, match="request 1 asks for no name"):
        approvals.grant(connection, 1, device=None, now=NOW)
    assert approvals.grant(connection, 1, device="dev", now=NOW).device == "dev"
    for missing in (0, 2):
        with pytest.raises(StateError, match=f"there is no request {missing}"):
            approvals.deny(connection, missing, now=NOW)


def test_a_name_is_granted_to_one_tpm(connection: Connection) -> None:
    approvals.request(connection, A, asked="dev", endorsed_by="CN=M", now=NOW)
    bindings.bind(connection, "dev", B, now=NOW)
    with pytest.raises(StateError, match="dev belongs to another TPM"):
        approvals.grant(connection, 1, device=None, now=NOW)
    allow_list.add(connection, [allow_list.Entry(B, "dev-2"), allow_list.Entry(A, "dev-3")], now=NOW)
    with pytest.raises(StateError, match="the allow-list has dev-2 for another TPM"):
        approvals.grant(connection, 1, device="dev-2", now=NOW)
    assert approvals.grant(connection, 1, device="dev-3", now=NOW).device == "dev-3"


def test_the_queue_is_bounded(connection: Connection, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "QUEUE_LIMIT", 1)
    approvals.request(connection, A, asked=None, endorsed_by="CN=M", now=NOW)
    assert approvals.request(connection, B, asked=None, endorsed_by="CN=M", now=NOW) is None
    assert approvals.request(connection, A, asked=None, endorsed_by="CN=M", now=NOW) is not None
    decision = admit(connection, verdict)
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.QUEUE_FULL
    approvals.deny(connection, 1, now=NOW)
    assert approvals.request(connection, B, asked=None, endorsed_by="CN=M", now=NOW) is not None


# --- enrollments


def admit(
    connection: Connection,
    verdict: Verdict,
    *,
    claim: Permit | None = None,
    asked: str | None = None,
    key_digest: str = DIGEST,
) -> Permit | Waiting | Refusal:
    return registry.admit(connection, verdict, claim=claim, asked=asked, key_digest=key_digest, now=NOW)


def issue(connection: Connection, issuer: Issuer, permit: Permit, verdict: Verdict) -> str:
    """Stores a certificate and notes it."""
    record = store_certificate(connection, issuer, permit.device)
    registry.note_issued(connection, permit, verdict, serial=record.serial, key_digest=DIGEST, now=NOW)
    return record.serial


def test_the_administrators_settings_become_the_terms(connection: Connection, case: Case, maker: Certifier) -> None:
    assert registry.find_terms(connection, case.challenge, case.evidence, now=NOW) == Terms(ek_roots.trust(connection))
    ek_roots.add(connection, [maker.certificate], now=NOW)
    assert case.challenge is not None
    assert case.challenge.activation is not None
    ek_hash = case.challenge.activation.ek_hash
    terms = registry.find_terms(connection, case.challenge, case.evidence, now=NOW)
    assert (terms.trust.roots, terms.listed, terms.imported) == ((maker.certificate,), False, False)
    assert case.but(terms=terms).judge().ek_hash == ek_hash
    policies = frozenset({b"p" * 32})
    groups.save(connection, Group("g", imported=True, policies=policies), now=NOW)
    allow_list.add(connection, [allow_list.Entry(ek_hash, "dev", "g")], now=NOW)
    terms = registry.find_terms(connection, case.challenge, case.evidence, now=NOW)
    assert (terms.listed, terms.imported, terms.policies) == (True, True, policies)
    assert registry.find_terms(connection, None, case.evidence, now=NOW).listed is False


def test_an_unlisted_tpm_waits_is_approved_enrolls_and_renews(
    connection: Connection, verdict: Verdict, template_issuer: Issuer
) -> None:
    waiting = admit(connection, verdict)
    assert waiting == Waiting(1, f"ek-{verdict.ek_hash[:40]}") == admit(connection, verdict)
    approvals.grant(connection, 1, device="dev", now=NOW)
    permit = admit(connection, verdict)
    assert permit == Permit("dev", f"tpm {verdict.ek_hash[:40]}")
    assert isinstance(permit, Permit)
    serial = issue(connection, template_issuer, permit, verdict)
    assert bindings.of_device(connection, "dev") == bindings.Binding("dev", verdict.ek_hash, NOW, None)
    assert approvals.listing(connection) == []
    found = attestations.find(connection, serial)
    assert found is not None
    assert (found.device, found.key_name, found.residency) == ("dev", verdict.key.name.hex(), Residency.FIXED)
    assert attestations.find(connection, "0b") is None
    claim = Permit("dev", f"certificate {serial}")
    assert admit(connection, verdict, claim=claim) == claim
    issue(connection, template_issuer, claim, verdict)
    assert events(connection) == [
        ("approval-requested", f"ek-{verdict.ek_hash[:40]}", None),
        ("approval-granted", "dev", None),
        ("device-bound", "dev", 8),
        ("evidence-accepted", "dev", 8),
        ("evidence-accepted", "dev", 9),
    ]
    assert last(connection).detail["endorsed_by"] == "CN=Maker Root"


def test_whoever_takes_the_name_over_is_refused_and_noted(
    connection: Connection, verdict: Verdict, template_issuer: Issuer
) -> None:
    claim = Permit("dev", "token 1")
    issue(connection, template_issuer, claim, verdict)
    other = dataclasses.replace(verdict, ek_hash=B)
    allow_list.add(connection, [allow_list.Entry(B, "dev")], now=NOW)
    assert admit(connection, other) == Refusal(Reason.DEVICE_OF_ANOTHER, "dev", 8)
    entry = last(connection)
    assert (entry.event, entry.subject) == ("evidence-refused", "dev")
    wanted = {"check": 8, "reason": "device-of-another-tpm", "why": "device-of-another-tpm", "ek": B}
    assert entry.detail == wanted
    bindings.release(connection, "dev", now=NOW)
    assert isinstance(admit(connection, other, key_digest="e" * 64), Permit)
    # the old one has its certificate still, and gets nothing for it
    renewed = admit(connection, verdict, claim=Permit("dev", "certificate 0a"))
    assert isinstance(renewed, Refusal)
    assert renewed.check == 9


def test_a_tpm_under_another_name_is_refused(connection: Connection, verdict: Verdict, template_issuer: Issuer) -> None:
    issue(connection, template_issuer, Permit("dev", "token 1"), verdict)
    decision = admit(connection, verdict, claim=Permit("dev-2", "certificate 0a"))
    assert decision == Refusal(Reason.TPM_OF_ANOTHER, "dev-2", 9)


def test_a_key_that_moved_is_refused(connection: Connection, verdict: Verdict, template_issuer: Issuer) -> None:
    issue(connection, template_issuer, Permit("dev", "token 1"), verdict)
    changed = dataclasses.replace(verdict, key=dataclasses.replace(verdict.key, name=b"\x00\x0b" + bytes(32)))
    assert admit(connection, changed) == Refusal(Reason.KEY_MOVED, "dev", 9)


def test_an_asked_name_is_approved_or_not_at_all(connection: Connection, verdict: Verdict) -> None:
    groups.save(connection, Group("default", ApprovalRule.NEVER, Naming.ASKED), now=NOW)
    assert admit(connection, verdict) == Waiting(1, None)
    assert admit(connection, verdict, asked="dev") == Waiting(1, "dev")
    approvals.deny(connection, 1, now=NOW)
    assert admit(connection, verdict, asked="dev") == Refusal(Reason.DENIED, "dev")
    groups.save(connection, Group("default", ApprovalRule.NEVER, Naming.EK), now=NOW)
    approvals.use_up(connection, verdict.ek_hash)
    assert isinstance(admit(connection, verdict, asked="dev"), Permit)


def test_a_device_seen_with_a_tpm_needs_one_ever_after(connection: Connection) -> None:
    claim = Permit("dev", "token 1")
    assert registry.note_downgrade(connection, claim, renewal=False, now=NOW) is None
    bindings.bind(connection, "dev", A, now=NOW)
    bindings.release(connection, "dev", now=NOW)
    assert registry.note_downgrade(connection, claim, renewal=False, now=NOW) == Refusal(Reason.DOWNGRADE, "dev", 8)
    assert registry.note_downgrade(connection, claim, renewal=True, now=NOW) == Refusal(Reason.DOWNGRADE, "dev", 9)
    assert events(connection)[-2:] == [("evidence-refused", "dev", 8), ("evidence-refused", "dev", 9)]


def test_refused_evidence_is_noted_with_its_check_and_not_much_else(connection: Connection, case: Case) -> None:
    error = EvidenceRefusedError("x" * 10_000, hint="h", check=5)
    refusal = registry.note_refusal(connection, error, challenge=case.challenge, claim=None, now=NOW)
    assert refusal == Refusal(Reason.EVIDENCE_REFUSED, None, 5)
    entry = last(connection)
    assert case.challenge is not None
    assert case.challenge.activation is not None
    assert entry.subject == entry.detail["ek"] == case.challenge.activation.ek_hash
    assert entry.detail["why"] == "x" * 200
    registry.note_refusal(connection, error, challenge=None, claim=None, now=NOW)
    assert (last(connection).subject, last(connection).detail["ek"]) == ("unknown", None)
    registry.note_refusal(connection, error, challenge=None, claim=Permit("dev", "token 1"), now=NOW)
    assert last(connection).subject == "dev"


# --- attestation-key certificates


def voucher_of(connection: Connection, certificate: bytes, *, now: Any = NOW) -> Terms:  # noqa: ANN401 - a time
    evidence = Evidence(b"a", b"s", b"p", (b"junk", certificate))
    return registry.find_terms(connection, Challenge(b"n" * 32), evidence, now=now)


def test_our_own_certificate_vouches_for_an_attestation_key(connection: Connection, template_issuer: Issuer) -> None:
    key = new_key()
    bindings.bind(connection, "dev", A, now=NOW)
    record = store_certificate(connection, template_issuer, "dev", key=key, profile=profiles.ATTESTATION)
    terms = voucher_of(connection, record.der)
    assert terms.voucher is not None
    assert (terms.voucher.ek_hash, terms.voucher.ak.spki) == (A, spki(key.public_key()))
    assert terms.trust.roots == ()
    groups.save(connection, Group("default", imported=True), now=NOW)
    assert voucher_of(connection, record.der).imported
    assert voucher_of(connection, record.der, now=NOW + timedelta(days=91)).voucher is None
    records.revoke(connection, record, reason="unspecified", now=NOW)
    assert voucher_of(connection, record.der).voucher is None


def test_other_certificates_vouch_for_nothing(
    connection: Connection, template_issuer: Issuer, maker: Certifier
) -> None:
    bindings.bind(connection, "dev", A, now=NOW)
    device = store_certificate(connection, template_issuer, "dev")
    assert voucher_of(connection, device.der).voucher is None
    assert voucher_of(connection, maker.der).voucher is None
    unbound = store_certificate(connection, template_issuer, "dev-2", profile=profiles.ATTESTATION)
    assert voucher_of(connection, unbound.der).voucher is None
    ours = store_certificate(connection, template_issuer, "dev", profile=profiles.ATTESTATION)
    forged = maker.certify("dev", new_key().public_key(), [])
    assert voucher_of(connection, der(forged)).voucher is None
    assert voucher_of(connection, ours.der[:-1] + bytes([ours.der[-1] ^ 1])).voucher is None


def test_one_from_before_a_release_vouches_for_nothing(connection: Connection, template_issuer: Issuer) -> None:
    """The name has another TPM now."""
    bindings.bind(connection, "dev", A, now=NOW)
    record = store_certificate(connection, template_issuer, "dev", profile=profiles.ATTESTATION)
    bindings.release(connection, "dev", now=NOW)
    assert voucher_of(connection, record.der).voucher is None
    bindings.bind(connection, "dev", B, now=NOW + timedelta(seconds=1))
    assert voucher_of(connection, record.der).voucher is None
