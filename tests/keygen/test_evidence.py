"""Evidence collected on a device: the CA's own verifier accepts it, and what is doomed is explained beforehand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.tpm_trace import CommandTrace
from tpm_mtls.attestation_key import AttestationKey, load_attestation_key, save_attestation_key
from tpm_mtls.certificates import load_certificates, parse_csr, spki
from tpm_mtls.errors import (
    AuthorizationError,
    EvidenceError,
    EvidenceRefusedError,
    ForeignKeyError,
    IdentityError,
    TpmMtlsError,
)
from tpm_mtls.evidence import evidence_of_csr
from tpm_mtls.freshness import ActivationResponse, NonceResponse
from tpm_mtls.identity import ATTESTATION_KEY
from tpm_mtls.structures import EkTemplate, KeyAlgorithm, make_credential, parse_public_area
from tpm_mtls.tpm import Tpm, open_tpm
from tpm_mtls_keygen.attestation_key import make_attestation_key
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.evidence import Endorsement, activation_request, collect_evidence, read_endorsement
from tpm_mtls_keygen.keys import FileForm, PersistentForm, TpmKey, create_key
from tpm_mtls_pki.evidence import Challenge, EkTrust, Terms, Verdict, judge_evidence, make_activation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

NONCE = b"n" * 32


@pytest.fixture
def genuine(make_tpm: Callable[..., SimulatedTpm]) -> SimulatedTpm:
    """A TPM with its maker's certificates."""
    return make_tpm(ek_certificates=True)


def maker(tpm: SimulatedTpm) -> EkTrust:
    folder = tpm.simulator.folder / "ca"
    return EkTrust(
        load_certificates(folder / "swtpm-localca-rootca-cert.pem"), load_certificates(folder / "issuercert.pem")
    )


@dataclass
class Exchange:
    """The CA's side: what it remembers, and what it answers."""

    challenge: Challenge
    response: NonceResponse

    @classmethod
    def begin(cls, endorsement: Endorsement, key: AttestationKey) -> Exchange:
        wanted = activation_request(endorsement, key)
        activation, blob, secret = make_activation(
            ek_certificate=wanted.ek_certificate,
            ek_public=wanted.ek_public,
            ek_chain=wanted.ek_chain,
            ak_public=wanted.ak_public,
        )
        return cls(Challenge(NONCE, activation), NonceResponse(NONCE, 300, ActivationResponse(blob, secret)))

    def judge(self, csr: bytes, terms: Terms) -> Verdict:
        request = parse_csr(csr)
        assert request.is_signature_valid
        evidence = evidence_of_csr(request)
        assert evidence is not None
        key = spki(request.public_key())
        return judge_evidence(evidence, challenge=self.challenge, public_key=key, terms=terms, now=datetime.now(UTC))


def prepare(tpm: Tpm, template: EkTemplate | None = None) -> tuple[Endorsement, AttestationKey, Exchange]:
    endorsement = read_endorsement(tpm, template)
    key = make_attestation_key(tpm, endorsement)
    return endorsement, key, Exchange.begin(endorsement, key)


@pytest.mark.parametrize("template", [None, EkTemplate.RSA_2048, EkTemplate.HIGH_ECC_P384])
@pytest.mark.parametrize("in_file", [False, True])
def test_the_ca_accepts_what_the_tpm_says(
    genuine: SimulatedTpm, tmp_path: Path, template: EkTemplate | None, *, in_file: bool
) -> None:
    with open_tpm(genuine.tcti) as tpm:
        key = create_key(tpm, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "key.pem") if in_file else PersistentForm())
        endorsement, ak, exchange = prepare(tpm, template)
        evidence = collect_evidence(tpm, key, ak, exchange.response)
        csr = build_csr(tpm, key, common_name="sensor-17", evidence=evidence)

    verdict = exchange.judge(csr, Terms(maker(genuine)))

    assert verdict.ek_hash == endorsement.hash
    assert verdict.key == key.public
    assert endorsement.template is (template or EkTemplate.HIGH_ECC_P384)  # without a wish: no RSA key, it takes long


def test_a_tpm_without_certificates_is_known_by_its_p256_endorsement_key(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = create_key(opened, KeyAlgorithm.RSA_2048, PersistentForm())
        endorsement, ak, exchange = prepare(opened)
        csr = build_csr(opened, key, evidence=collect_evidence(opened, key, ak, exchange.response))

    assert (endorsement.template, endorsement.certificate) == (EkTemplate.ECC_P256, None)
    assert exchange.judge(csr, Terms(EkTrust(), listed=True)).ek_hash == endorsement.hash
    with pytest.raises(EvidenceRefusedError, match="not on the allow-list"):
        exchange.judge(csr, Terms(EkTrust()))


def test_the_hash_is_that_of_the_public_key_as_openssl_writes_it(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pem", "-f", "pem", cwd=tmp_path)
    tpm.flush()
    tpm.tool("openssl", "pkey", "-pubin", "-in", "ek.pem", "-outform", "DER", "-out", "ek.der", cwd=tmp_path)

    with open_tpm(tpm.tcti) as opened:
        found = read_endorsement(opened).hash

    assert found == hashlib.sha256((tmp_path / "ek.der").read_bytes()).hexdigest()


def test_the_evidence_costs_few_commands(
    genuine: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate in NV and a persistent key; the low range costs two more for its policy session."""
    trace = CommandTrace(genuine, tmp_path, monkeypatch)
    look = ["GetCapability", "NV_ReadPublic", "NV_Read", "NV_Read"]
    counts = {}
    with open_tpm(trace.tcti) as tpm:
        key = create_key(tpm, KeyAlgorithm.ECC_P256, PersistentForm())
    for template in (EkTemplate.HIGH_ECC_P384, EkTemplate.RSA_2048):
        trace.restart()
        with open_tpm(trace.tcti) as tpm:
            endorsement = read_endorsement(tpm, template)
        assert trace.commands() == look
        trace.restart()
        with open_tpm(trace.tcti) as tpm:
            ak = make_attestation_key(tpm, endorsement)
        assert trace.commands() == ["CreateLoaded", "FlushContext"]
        exchange = Exchange.begin(endorsement, ak)
        trace.restart()
        with open_tpm(trace.tcti) as tpm:
            loaded = TpmKey(key.reference, tpm.use_persistent(0x81000100))
            collect_evidence(tpm, loaded, ak, exchange.response)
        counts[template] = [each for each in trace.commands() if each != "ActivateCredential=0x922"]
    assert counts[EkTemplate.HIGH_ECC_P384] == [
        *("ReadPublic", "Load", "ReadPublic"),  # the TLS key, the attestation key, the endorsement key
        *("ActivateCredential", "Certify", "FlushContext"),
    ]
    assert counts[EkTemplate.RSA_2048] == [
        *("ReadPublic", "Load", "ReadPublic", "StartAuthSession", "PolicySecret"),
        *("ActivateCredential", "Certify", "FlushContext"),
    ]


# -- what is doomed is explained here ---------------------------------------------------------------------------------


def collect(
    tpm: SimulatedTpm, change: Callable[[Tpm, AttestationKey, NonceResponse], tuple[AttestationKey, NonceResponse]]
) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
        _, ak, exchange = prepare(opened)
        collect_evidence(opened, key, *change(opened, ak, exchange.response))


def replaced(response: NonceResponse, blob: bytes, secret: bytes) -> NonceResponse:
    return NonceResponse(response.nonce, response.expiry, ActivationResponse(blob, secret))


def test_without_a_nonce_or_a_credential_there_is_no_evidence(tpm: SimulatedTpm) -> None:
    for response in (NonceResponse(NONCE), NonceResponse(b"", activation=ActivationResponse(b"a", b"b"))):
        with pytest.raises(EvidenceError, match="gave no nonce with a credential"):
            collect(tpm, lambda _, ak, __, response=response: (ak, response))  # type: ignore[misc]


def test_a_credential_for_another_attestation_key_is_told(tpm: SimulatedTpm) -> None:
    def other(opened: Tpm, ak: AttestationKey, response: NonceResponse) -> tuple[AttestationKey, NonceResponse]:
        another = make_attestation_key(opened, read_endorsement(opened))
        blob, secret = make_credential(parse_public_area(ak.ek_public), another.area.name, bytes(32))
        return ak, replaced(response, blob, secret)

    with pytest.raises(EvidenceError, match="not for this TPM and this attestation key"):
        collect(tpm, other)


@pytest.mark.parametrize("part", ["blob", "secret"])
def test_a_damaged_credential_is_told(tpm: SimulatedTpm, part: str) -> None:
    def damage(_: Tpm, ak: AttestationKey, response: NonceResponse) -> tuple[AttestationKey, NonceResponse]:
        given = response.activation
        assert given is not None
        blob, secret = given.credential_blob, given.encrypted_secret
        if part == "blob":
            return ak, replaced(response, blob[:-1], secret)
        return ak, replaced(response, blob, secret + b"\0")

    with pytest.raises(EvidenceError, match="the credential is malformed"):
        collect(tpm, damage)


def test_another_endorsement_key_than_the_one_asked_for_is_check_2(
    tpm: SimulatedTpm, make_tpm: Callable[..., SimulatedTpm]
) -> None:
    def moved(_: Tpm, ak: AttestationKey, response: NonceResponse) -> tuple[AttestationKey, NonceResponse]:
        with open_tpm(make_tpm().tcti) as other:
            return msgspec.structs.replace(ak, ek_public=read_endorsement(other).public.data), response

    with pytest.raises(
        EvidenceRefusedError, match=r"the TPM's endorsement key is [0-9a-f]{64}, not [0-9a-f]{64}"
    ) as it:
        collect(tpm, moved)
    assert it.value.check == 2


def test_a_key_that_signs_anything_is_no_attestation_key_check_3(tpm: SimulatedTpm) -> None:
    def unrestricted(opened: Tpm, ak: AttestationKey, response: NonceResponse) -> tuple[AttestationKey, NonceResponse]:
        with opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
            return msgspec.structs.replace(ak, public=key.public.data, private=key.private), response

    with pytest.raises(EvidenceRefusedError, match="would sign anything") as it:
        collect(tpm, unrestricted)
    assert it.value.check == 3


def test_an_attestation_key_of_another_tpm_is_told(tpm: SimulatedTpm, make_tpm: Callable[..., SimulatedTpm]) -> None:
    def foreign(_: Tpm, ak: AttestationKey, response: NonceResponse) -> tuple[AttestationKey, NonceResponse]:
        with open_tpm(make_tpm().tcti) as other:
            made = make_attestation_key(other, read_endorsement(other))
        return msgspec.structs.replace(ak, public=made.public, private=made.private), response

    with pytest.raises(ForeignKeyError, match="belongs to another TPM"):
        collect(tpm, foreign)


def test_an_endorsement_hierarchy_with_a_password_needs_it(genuine: SimulatedTpm) -> None:
    genuine.tool("tpm2_changeauth", "-c", "e", "secret")
    with open_tpm(genuine.tcti) as tpm:
        key = create_key(tpm, KeyAlgorithm.ECC_P256, PersistentForm())
        _, ak, exchange = prepare(tpm, EkTemplate.RSA_2048)
        with pytest.raises(AuthorizationError) as refusal:
            collect_evidence(tpm, key, ak, exchange.response)

    assert "--endorsement-auth" in refusal.value.hint


def test_a_certificate_of_another_key_in_nv_is_check_2(
    genuine: SimulatedTpm, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    """The maker's template makes another key than the certificate is for."""
    with open_tpm(make_tpm().tcti) as other:
        template = EkTemplate.HIGH_ECC_P256
        public = read_endorsement(other, template).public
    assert public.spki is not None
    certificate = genuine.simulator.folder / "ca" / "issuercert.pem"
    genuine.tool("openssl", "x509", "-in", str(certificate), "-outform", "DER", "-out", "cert.der", cwd=tmp_path)
    der = tmp_path / "cert.der"
    index = f"{template.certificate_index:#x}"
    attributes = "ownerwrite|ownerread|authread|no_da"
    genuine.tool("tpm2_nvdefine", index, "-C", "o", "-s", str(der.stat().st_size), "-a", attributes)
    genuine.tool("tpm2_nvwrite", index, "-C", "o", "-i", str(der))

    with open_tpm(genuine.tcti) as tpm, pytest.raises(EvidenceError, match="is not ecc-p256"):
        read_endorsement(tpm, template)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff" * 300, "something else"), (b"\x30\x82\x01\x00" + b"\0" * 256, "is damaged")]
)
def test_garbage_in_the_certificate_s_place_is_told(tpm: SimulatedTpm, content: bytes, message: str) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.nv.define(EkTemplate.ECC_P256.certificate_index, len(content))
        opened.nv.write(EkTemplate.ECC_P256.certificate_index, content)

        with pytest.raises(EvidenceError, match=message):
            read_endorsement(opened)


# -- the attestation key's file ---------------------------------------------------------------------------------------


def test_the_attestation_key_is_kept_in_a_private_file_and_found_again(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = make_attestation_key(opened, read_endorsement(opened))
    save_attestation_key(tmp_path, key)

    assert load_attestation_key(tmp_path) == key
    assert (tmp_path / ATTESTATION_KEY).stat().st_mode & 0o777 == 0o600
    with open_tpm(tpm.tcti) as opened, key.load(opened) as loaded:
        assert loaded.public == key.area


def test_no_file_is_no_key(tmp_path: Path) -> None:
    assert load_attestation_key(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "of format 2"),
        ({"private": ""}, "another size"),
        ({"public": "AAAA"}, "is damaged: malformed public area"),
        ({"ek_template": "L-9"}, "is damaged: invalid enum value"),
        ({"else": 1}, "is damaged: object contains unknown field"),
    ],
)
def test_a_damaged_file_is_told(tpm: SimulatedTpm, tmp_path: Path, change: dict[str, object], message: str) -> None:
    with open_tpm(tpm.tcti) as opened:
        save_attestation_key(tmp_path, make_attestation_key(opened, read_endorsement(opened)))
    path = tmp_path / ATTESTATION_KEY
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))

    with pytest.raises(IdentityError, match=message):
        load_attestation_key(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(TpmMtlsError):
        load_attestation_key(tmp_path)
