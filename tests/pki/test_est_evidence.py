"""Enrollment with the evidence of a TPM, over real TLS connections: a reference client against the CA."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from support.authority import basic, est_host, make_csr, make_token, new_key
from support.evil_device import software_csr
from support.reference_device import TPM2_ALG, TPMA_OBJECT, Exchange, spki
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.device_identity import tpm_identity
from tpm_mtls.device_names import device_name
from tpm_mtls_pki import allow_list, approvals, audit, bindings, ek_roots, groups, records
from tpm_mtls_pki.allow_list import Entry
from tpm_mtls_pki.clock import utc_now
from tpm_mtls_pki.groups import ApprovalRule, Group, Naming
from tpm_mtls_pki.refusal_budget import RefusalBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.authority import EstHost, MovableClock
    from support.reference_device import Answer, Nonce, ReferenceDevice
    from support.tpm import SimulatedTpm
    from tpm_mtls_pki.issuance import Registrar


@pytest.fixture
def registrar(registrar: Registrar, clock: MovableClock, genuine_tpm: SimulatedTpm) -> Registrar:
    """A CA that trusts the TPM's maker, and lets its TPMs in without asking anybody."""
    clock.now = utc_now()
    folder = genuine_tpm.simulator.folder / "ca"
    found = [(folder / name).read_bytes() for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem")]
    with registrar.authority.database.writing() as connection:
        ek_roots.add(connection, [x509.load_pem_x509_certificate(pem) for pem in found], now=clock())
    set_group(registrar, approval=ApprovalRule.NEVER)
    return registrar


@pytest.fixture
def host(registrar: Registrar) -> Iterator[EstHost]:
    with est_host(registrar) as running:
        yield running


def set_group(registrar: Registrar, **rules: Any) -> None:  # noqa: ANN401 - those of Group
    with registrar.authority.database.writing() as connection:
        groups.save(connection, Group(groups.DEFAULT, **rules), now=registrar.clock())


def last_audit(registrar: Registrar) -> audit.Entry:
    with registrar.authority.database.reading() as connection:
        return list(audit.entries(connection))[-1]


def revoke(registrar: Registrar, certificate: x509.Certificate, reason: str) -> None:
    with registrar.authority.database.writing() as connection:
        record = records.find(connection, records.serial_text(certificate))
        assert record is not None
        records.revoke(connection, record, reason=reason, now=registrar.clock())


def issued_count(registrar: Registrar) -> int:
    with registrar.authority.database.reading() as connection:
        return len([record for record in records.listing(connection) if record.profile != "server"])


def ek_hash(device: ReferenceDevice) -> str:
    return hashlib.sha256(spki(x509.load_der_x509_certificate(device.ek_certificate))).hexdigest()


@pytest.fixture
def exchange(host: EstHost, device: ReferenceDevice) -> Iterator[Exchange]:
    with Exchange(host.port, host.context(), device) as opened:
        yield opened


def policies(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
    return [each.policy_identifier.dotted_string for each in found]


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


# the way it should be


@pytest.mark.parametrize("device", ["rsa", "ecc"], indirect=True)
def test_a_tpm_enrolls_without_any_secret_on_board(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    answer = exchange.enroll()
    assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert len(answer.certificates) == 2
    leaf, ak = answer.certificate_of(device.key), answer.certificate_of(device.ak)
    name = f"ek-{ek_hash(device)[:40]}"
    assert device_name(leaf) == name
    assert policies(leaf) == ["2.23.133.11.1.1", "2.23.133.11.1.2"]
    assert policies(ak) == ["2.23.133.11.1.3"]
    for certificate in (leaf, ak):
        assert str(tpm_identity(alternative_names(certificate))) == ek_hash(device)
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        assert verify(registrar, certificate) == "OK"
    assert not alternative_names(ak).get_values_for_type(x509.DNSName)


def verify(registrar: Registrar, certificate: x509.Certificate) -> str:
    folder = registrar.authority.folder
    (folder / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    trust = ("-CAfile", folder / "root.pem", "-untrusted", folder / "issuing.pem")
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", *trust, folder / "leaf.pem"], capture_output=True, text=True, check=False
    )
    return done.stdout.rpartition(" ")[2].strip()


def test_binding_certificates_and_audit_are_one(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    answer = exchange.enroll()
    serial = records.serial_text(answer.certificate_of(device.key))
    with registrar.authority.database.reading() as connection:
        binding = bindings.of_tpm(connection, ek_hash(device))
        assert binding is not None
        assert binding.device == device_name(answer.certificate_of(device.key))
        rows = {entry.event: entry.detail for entry in audit.entries(connection)}
        audit.verify(connection)
    assert rows["evidence-accepted"]["serial"] == serial
    assert rows["device-bound"]["ek"] == ek_hash(device)


def test_an_attestation_key_certificate_that_cannot_be_stored_undoes_all(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    with registrar.authority.database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON certificates WHEN NEW.profile = 'attestation' "
            "BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
        )
    assert exchange.enroll().status == 503
    with registrar.authority.database.reading() as connection:
        assert bindings.of_tpm(connection, ek_hash(device)) is None
    assert issued_count(registrar) == 0


def test_the_cookie_does_instead_of_the_connection(host: EstHost, device: ReferenceDevice) -> None:
    with Exchange(host.port, host.context(), device) as first:
        nonce = first.nonce()
    assert nonce.cookie is not None
    csr = device.csr(device.certify(nonce.qualifying_data))
    with Exchange(host.port, host.context(), device) as second:
        assert second.post(csr, Cookie=nonce.cookie).status == 200


def test_a_signature_without_its_frame_will_do(device: ReferenceDevice, exchange: Exchange) -> None:
    """TPMT_SIGNATURE, or the bare value: here an Ecdsa-Sig-Value."""
    proof = device.certify(exchange.nonce().qualifying_data)
    bare = device.bare_signature(proof)
    assert bare != proof.signature
    assert exchange.post(device.csr(dataclasses.replace(proof, signature=bare))).status == 200


def test_nothing_of_the_csr_but_its_key_is_certified(device: ReferenceDevice, exchange: Exchange) -> None:
    answer = exchange.enroll(name="evil.example")
    assert device_name(answer.certificate_of(device.key)).startswith("ek-")


def test_an_interrupted_device_enrolls_again(
    registrar: Registrar, host: EstHost, device: ReferenceDevice, exchange: Exchange
) -> None:
    """Its answer was lost: with the same key, or another one, without a human."""
    first = exchange.enroll().certificate_of(device.key)
    with Exchange(host.port, host.context(), device) as again:
        second = again.enroll().certificate_of(device.key)
    other = device.make_key()
    third = exchange.enroll(key=other).certificate_of(other)
    assert device_name(first) == device_name(second) == device_name(third)
    assert last_audit(registrar).subject == device_name(first)


def test_a_token_names_the_device(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    """And it is used up; the TPM alone is enough from then on, with another key, too."""
    headers = basic("sensor-1", make_token(registrar, "sensor-1"))
    set_group(registrar, approval=ApprovalRule.UNLISTED)
    proof = device.certify(exchange.nonce().qualifying_data)
    answer = exchange.post(device.csr(proof), **headers)
    assert device_name(answer.certificate_of(device.key)) == "sensor-1"
    assert len(answer.certificates) == 2
    other = device.make_key()
    proof = device.certify(exchange.nonce().qualifying_data, key=other)
    assert exchange.post(device.csr(proof, key=other), **headers).status == 200
    assert last_audit(registrar).detail["grounds"] == "device sensor-1"
    assert exchange.enroll().status == 200


def test_a_wrong_token_is_not_made_good_by_evidence(device: ReferenceDevice, exchange: Exchange) -> None:
    proof = device.certify(exchange.nonce().qualifying_data)
    assert exchange.post(device.csr(proof), **basic("sensor-1", "wrong")).status == 401


# the AK's certificate instead of an activation


def test_a_certified_attestation_key_needs_no_activation(device: ReferenceDevice, exchange: Exchange) -> None:
    """The draft's way: extraData = nonce."""
    first = exchange.enroll()
    vouching = first.certificate_of(device.ak).public_bytes(Encoding.DER)
    answer = with_certificate(exchange, device, vouching)
    assert device_name(answer.certificate_of(device.key)) == device_name(first.certificate_of(device.key))
    assert policies(answer.certificate_of(device.key)) == ["2.23.133.11.1.1", "2.23.133.11.1.2"]
    assert len(answer.certificates) == 1, "its certificate does not prolong itself"


def plain_nonce(exchange: Exchange) -> bytes:
    answer = exchange.ask(None)
    text: str = json.loads(answer.body)["nonce"]
    return base64.urlsafe_b64decode(text + "=")


def with_certificate(exchange: Exchange, device: ReferenceDevice, *certificates: bytes) -> Answer:
    proof = device.certify(plain_nonce(exchange))
    return exchange.post(device.csr(dataclasses.replace(proof, certificates=certificates)))


@pytest.mark.parametrize("fault", ["none", "of the TLS key", "revoked", "expired", "released", "EK's", "garbage"])
def test_another_certificate_vouches_for_nothing(
    registrar: Registrar,
    device: ReferenceDevice,
    exchange: Exchange,
    clock: MovableClock,
    fault: str,
) -> None:
    first = exchange.enroll()
    leaf, ak = first.certificate_of(device.key), first.certificate_of(device.ak)
    shown = {"of the TLS key": leaf.public_bytes(Encoding.DER), "EK's": device.ek_certificate, "garbage": b"\x30\x00"}
    if fault == "revoked":
        revoke(registrar, ak, "superseded")
    if fault == "released":
        with registrar.authority.database.writing() as connection:
            bindings.release(connection, device_name(leaf), now=clock())
    if fault == "expired":
        clock.move(days=91)
    certificates = () if fault == "none" else (shown.get(fault, ak.public_bytes(Encoding.DER)),)
    assert with_certificate(exchange, device, *certificates).status == 403
    assert last_audit(registrar).detail["check"] == 4


# approval


def test_a_tpm_that_nobody_listed_waits_for_approval(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """RFC 7030, 4.2.3: 202 with Retry-After, until an administrator says yes."""
    set_group(registrar, approval=ApprovalRule.UNLISTED, naming=Naming.ASKED)
    for _ in range(2):
        answer = exchange.enroll(name="sensor-7")
        assert (answer.status, answer.headers["Retry-After"], len(answer.body)) == (202, "60", 31)
    assert issued_count(registrar) == 0
    with registrar.authority.database.writing() as connection:
        (waiting,) = approvals.listing(connection)
        assert (waiting.asked, waiting.ek_hash) == ("sensor-7", ek_hash(device))
        approvals.grant(connection, waiting.id, device=None, now=registrar.clock())
    assert device_name(exchange.enroll(name="sensor-8").certificate_of(device.key)) == "sensor-7"


def test_a_denied_tpm_gets_no_certificate(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    set_group(registrar, approval=ApprovalRule.ALWAYS)
    assert exchange.enroll().status == 202
    with registrar.authority.database.writing() as connection:
        (waiting,) = approvals.listing(connection)
        approvals.deny(connection, waiting.id, now=registrar.clock())
    assert exchange.enroll().status == 403
    assert ek_hash(device) in str(last_audit(registrar).detail)


def test_the_allow_list_names_a_device(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    set_group(registrar, approval=ApprovalRule.UNLISTED)
    entry = Entry(ek_hash(device), "pump-3", groups.DEFAULT, registrar.clock())
    with registrar.authority.database.writing() as connection:
        allow_list.add(connection, [entry], now=registrar.clock())
    answer = exchange.enroll()
    assert device_name(answer.certificate_of(device.key)) == "pump-3"
    assert str(tpm_identity(alternative_names(answer.certificate_of(device.key)))) == ek_hash(device)


# renewal, and what a device with a TPM can no longer do


def software_request(host: EstHost, registrar: Registrar, name: str) -> int:
    return host.enroll(make_csr(new_key()), basic(name, make_token(registrar, name)))[0]


def test_a_device_with_a_tpm_never_comes_with_a_software_key_again(
    registrar: Registrar, host: EstHost, device: ReferenceDevice, exchange: Exchange
) -> None:
    """Not with a good token either; nor after its TPM was released. The answer is that to a wrong token."""
    name = device_name(exchange.enroll().certificate_of(device.key))
    before = issued_count(registrar)
    wrong = host.enroll(make_csr(new_key()), basic(name, "wrong"))
    good = host.enroll(make_csr(new_key()), basic(name, make_token(registrar, name)))
    assert (good[0], good[2]) == (wrong[0], wrong[2]) == (401, wrong[2])
    assert last_audit(registrar).detail["check"] == 8
    with registrar.authority.database.writing() as connection:
        bindings.release(connection, name, now=registrar.clock())
    assert software_request(host, registrar, name) == 401
    assert issued_count(registrar) == before
    assert software_request(host, registrar, "another") == 200


def bound_software_device(
    registrar: Registrar, host: EstHost, device: ReferenceDevice
) -> tuple[x509.Certificate, Callable[[], Exchange]]:
    """A device that enrolled with a token and a key of which the test has a copy, and has a TPM."""
    key = new_key()
    status, _, body = host.enroll(make_csr(key), basic("sensor-1", make_token(registrar, "sensor-1")))
    assert status == 200
    (certificate,) = x509_of(body)
    return certificate, lambda: Exchange(host.port, host.context(certificate, key), device)


def x509_of(body: bytes) -> list[x509.Certificate]:
    from tpm_mtls import est

    return list(est.decode_certificates(body))


def test_a_renewal_takes_the_same_evidence(
    registrar: Registrar, host: EstHost, device: ReferenceDevice, exchange: Exchange
) -> None:
    """Over TLS with the current certificate; from then on without evidence no more (check 9)."""
    certificate, connect = bound_software_device(registrar, host, device)
    with connect() as connection:
        renewed = connection.enroll(renew=True)
        assert device_name(renewed.certificate_of(device.key)) == "sensor-1"
        assert last_audit(registrar).subject == "sensor-1"
    with connect() as connection:
        before = issued_count(registrar)
        assert connection.post(make_csr(new_key()), renew=True).status == 403
        assert last_audit(registrar).detail["check"] == 9
        assert issued_count(registrar) == before
    assert exchange.enroll(renew=True).status == 403, "evidence is not the current certificate"
    assert certificate_spki(certificate) != device.key.spki


def test_a_renewal_with_another_devices_certificate_is_refused(
    registrar: Registrar, host: EstHost, device: ReferenceDevice, exchange: Exchange
) -> None:
    exchange.enroll()
    _, connect = bound_software_device(registrar, host, device)
    with connect() as connection:
        assert connection.enroll(renew=True).status == 403
    assert last_audit(registrar).detail["check"] == 9


def test_a_revoked_device_does_not_let_itself_in_again(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """A superseded certificate is another matter; and a token lets it in again."""
    for reason, status in (("superseded", 200), ("privilegeWithdrawn", 401)):
        certificate = exchange.enroll().certificate_of(device.key)
        revoke(registrar, certificate, reason)
        assert exchange.enroll().status == status
    last = last_audit(registrar)
    assert (last.event, last.detail) == ("enrollment-refused", {"reason": "certificate-revoked"})
    name = device_name(certificate)
    for _ in range(2):
        token = basic(name, make_token(registrar, name))
        proof = device.certify(exchange.nonce().qualifying_data)
        certificate = exchange.post(device.csr(proof), **token).certificate_of(device.key)
        revoke(registrar, certificate, "privilegeWithdrawn")
        proof = device.certify(exchange.nonce().qualifying_data)
        assert exchange.post(device.csr(proof), **token).status == 401, "a token lets it in once"


def test_a_released_and_approved_device_is_let_in_again(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange, clock: MovableClock
) -> None:
    certificate = exchange.enroll().certificate_of(device.key)
    revoke(registrar, certificate, "privilegeWithdrawn")
    assert exchange.enroll().status == 401
    with registrar.authority.database.writing() as connection:
        bindings.release(connection, device_name(certificate), now=clock())
    clock.move(seconds=1)
    assert exchange.enroll().status == 200


# what must be refused


def refused(registrar: Registrar, answer: Answer, check: int) -> None:
    """The one answer for all, the number in the audit log, no certificate."""
    assert (answer.status, answer.body) == (403, b"the request is refused\n")
    last = last_audit(registrar)
    assert (last.event, last.detail["check"]) == ("evidence-refused", check), last
    assert issued_count(registrar) == 0


def test_evidence_without_a_nonce_is_refused(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    refused(registrar, exchange.post(device.csr(device.certify(b"x" * 32))), 7)


def test_a_nonce_is_used_once(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    """Whatever became of the first request: here it was malformed."""
    csr = device.csr(device.certify(exchange.nonce().qualifying_data))
    refused(registrar, exchange.post(b"garbage"), 5)
    refused(registrar, exchange.post(csr), 7)


def test_evidence_is_used_once(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    nonce = exchange.nonce()
    csr = device.csr(device.certify(nonce.qualifying_data))
    assert exchange.post(csr).status == 200
    count = issued_count(registrar)
    assert exchange.post(csr).status == 403
    assert exchange.post(csr, Cookie=nonce.cookie or "").status == 403
    assert issued_count(registrar) == count
    assert last_audit(registrar).detail["check"] == 7


def test_a_nonce_of_another_session_is_refused(registrar: Registrar, host: EstHost, device: ReferenceDevice) -> None:
    """Neither its connection nor its cookie: and it stays good for its own client."""
    with (
        Exchange(host.port, host.context(), device) as mine,
        Exchange(host.port, host.context(), device) as other,
    ):
        nonce = mine.nonce()
        csr = device.csr(device.certify(nonce.qualifying_data))
        refused(registrar, other.post(csr), 7)
        refused(registrar, other.post(csr, Cookie="est-exchange=" + "A" * 43), 7)
        other.nonce()
        refused(registrar, other.post(csr), 7)
        assert mine.post(csr).status == 200


def test_a_nonce_ends(registrar: Registrar, device: ReferenceDevice) -> None:
    with est_host(registrar, nonce_lifetime=0.0) as host, Exchange(host.port, host.context(), device) as exchange:
        refused(registrar, exchange.enroll(), 7)


@pytest.mark.parametrize("guess", ["nonce", "zero secret", "none"])
def test_an_activation_cannot_be_guessed(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange, guess: str
) -> None:
    nonce: Nonce = exchange.nonce()
    import hmac

    data = {"nonce": nonce.nonce, "zero secret": hmac.digest(bytes(32), nonce.nonce, "sha256"), "none": b""}[guess]
    refused(registrar, exchange.post(device.csr(device.certify(data))), 7)


def test_a_software_key_with_a_certify_of_another_key_is_refused(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    other = device.make_key()
    proof = device.certify(exchange.nonce().qualifying_data, key=other)
    refused(registrar, exchange.post(device.csr(proof)), 6)


def test_a_key_that_can_leave_is_refused_unless_policy_allows(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """And then it gets no policy in its certificate."""
    loose = device.make_key(TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT)
    refused(registrar, exchange.enroll(key=loose), 5)
    set_group(registrar, approval=ApprovalRule.NEVER, imported=True)
    certificate = exchange.enroll(key=loose).certificate_of(loose)
    with pytest.raises(x509.ExtensionNotFound):
        policies(certificate)
    assert str(tpm_identity(alternative_names(certificate))) == ek_hash(device)
    assert exchange.enroll().status == 200
    assert exchange.enroll(key=loose).status == 401, "no way back from a key born in the TPM"
    assert last_audit(registrar).detail["check"] == 8


def test_an_unrestricted_attestation_key_is_refused(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """It would sign a Certify that nobody made."""
    device.ak = device.make_key(scheme=TPM2_ALG.ECDSA)
    refused(registrar, exchange.enroll(), 3)


def test_a_tpm_of_a_maker_that_nobody_trusts_is_refused(registrar: Registrar, exchange: Exchange) -> None:
    with registrar.authority.database.writing() as connection:
        for root in ek_roots.listing(connection):
            ek_roots.remove(connection, root.fingerprint, now=registrar.clock())
    refused(registrar, exchange.enroll(), 1)


def test_a_csr_that_was_changed_is_refused(registrar: Registrar, device: ReferenceDevice, exchange: Exchange) -> None:
    csr = bytearray(device.csr(device.certify(exchange.nonce().qualifying_data)))
    csr[-1] ^= 1
    refused(registrar, exchange.post(bytes(csr)), 6)
    detail = last_audit(registrar).detail
    assert detail["why"] == "the request's signature is wrong"
    assert detail["ek"] == ek_hash(device)


def test_a_csr_for_a_key_that_nobody_certifies_is_refused(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """Where there is evidence, its sender is not told that either."""
    proof = device.certify(exchange.nonce().qualifying_data)
    refused(registrar, exchange.post(software_csr(new_key(ec.SECP521R1), proof)), 6)
    assert last_audit(registrar).detail["why"] == "the CA does not certify keys on secp521r1"


@pytest.mark.parametrize("change", ["twice", "two values", "no value", "empty", "garbage", "large"])
def test_malformed_evidence_is_refused(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange, change: str
) -> None:
    """Like evidence that proves nothing."""
    from support import reference_device as make

    proof = device.certify(exchange.nonce().qualifying_data)
    good = make.attestation(proof)
    kind = make.oid("1.2.840.113549.1.9.16.2.59")
    bundle = good[good.index(b"\x31") :]
    contents = {
        "twice": [good, good],
        "two values": [make.sequence(kind, make.der(0x31, make.sequence(), make.sequence(make.sequence())))],
        "no value": [make.sequence(kind, make.der(0x31))],
        "empty": [make.sequence(kind, make.der(0x31, make.sequence()))],
        "garbage": [make.sequence(kind, make.der(0x31, b"\x04\x03abc"))],
        "large": [make.attestation(dataclasses.replace(proof, attest=bytes(14_000)))],
    }
    assert bundle
    refused(registrar, exchange.post(device.csr_with(contents[change])), 5)


def test_fifty_half_open_enrollments_do_not_harm(host: EstHost, device: ReferenceDevice, exchange: Exchange) -> None:
    nonce = exchange.nonce()
    for _ in range(50):
        with Exchange(host.port, host.context(), device) as other:
            assert other.ask(device.request()).status == 200
    assert exchange.post(device.csr(device.certify(nonce.qualifying_data))).status == 200


def test_the_log_says_which_check(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tpm_mtls_pki")
    exchange.post(device.csr(device.certify(b"x" * 32)))
    line = json.loads(caplog.messages[-1])
    assert (line["decision"], line["check"], line["reason"]) == ("refused", 7, "evidence-refused")
    assert last_audit(registrar).detail["why"].startswith("the evidence answers no open challenge")


def test_refusals_do_not_fill_the_disk(registrar: Registrar, device: ReferenceDevice) -> None:
    now = [0.0]
    sparing = dataclasses.replace(registrar, refusals=RefusalBudget(lambda: now[0], burst=1))
    with est_host(sparing) as host, Exchange(host.port, host.context(), device) as exchange:
        for _ in range(4):
            assert exchange.post(device.csr(device.certify(b"x" * 32))).status == 403
        now[0] = 1
        refused(registrar, exchange.post(device.csr(device.certify(b"x" * 32))), 7)
        assert exchange.post(b"garbage").status == 403
        assert exchange.post(bytes(70_000)).status == 413
    with registrar.authority.database.reading() as connection:
        rows = list(audit.entries(connection))[-3:]
    assert [row.event for row in rows] == ["evidence-refused", "refusals-left-out", "evidence-refused"]
    assert rows[1].detail == {"count": 3}


def test_an_attestation_key_of_another_device_is_refused(
    registrar: Registrar, device: ReferenceDevice, exchange: Exchange
) -> None:
    """Like any key that was certified for somebody else: after a release a device makes new ones."""
    certificate = exchange.enroll().certificate_of(device.key)
    with registrar.authority.database.writing() as connection:
        bindings.release(connection, device_name(certificate), now=registrar.clock())
        entry = Entry(ek_hash(device), "pump-3", groups.DEFAULT, registrar.clock())
        allow_list.add(connection, [entry], now=registrar.clock())
    other = device.make_key()
    answer = exchange.enroll(key=other)
    assert (answer.status, answer.body) == (400, b"the key is refused\n")
    device.ak = device.make_ak()
    assert device_name(exchange.enroll(key=other).certificate_of(other)) == "pump-3"
