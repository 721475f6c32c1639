"""TPM2_ActivateCredential and TPM2_Certify; tpm2-tools make the credentials, and see the certification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError, EvidenceError, TpmRefusedError
from tpm_mtls.structures import EkTemplate, KeyAlgorithm, Quoted, make_credential, parse_attest, verify_signature
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

TEMPLATES = [EkTemplate.RSA_2048, EkTemplate.ECC_P256, EkTemplate.HIGH_ECC_P256, EkTemplate.HIGH_ECC_P384]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_credential_by_tpm2_makecredential_is_opened(tpm: SimulatedTpm, tmp_path: Path, template: EkTemplate) -> None:
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    with open_tpm(tpm.tcti) as opened:
        ak = opened.srk.create_attestation_key()
        with opened.endorsement.use(template) as ek:
            (tmp_path / "ek.pub").write_bytes(len(ek.public.data).to_bytes(2, "big") + ek.public.data)
            command = ("tpm2_makecredential", "-T", "none", "-u", "ek.pub", "-s", "secret", "-o", "blob")
            tpm.tool(*command, "-n", ak.public.name.hex(), cwd=tmp_path)
            blobs = (tmp_path / "blob").read_bytes()[8:]  # behind a magic number and a version
            end = 2 + int.from_bytes(blobs[:2], "big")

            opened_secret = opened.attestation.activate_credential(ek, ak, blobs[:end], blobs[end:])

    assert opened_secret == Secret(b"0123456789abcdef")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_credential_for_somebody_else_is_refused_and_leaves_nothing(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: EkTemplate
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        ak = opened.srk.create_attestation_key()
        with opened.endorsement.use(template) as ek:
            blob, secret = make_credential(ek.public, b"\x00\x0b" + bytes(32), bytes(32))
            with pytest.raises(EvidenceError, match="not for this TPM and this attestation key"):
                opened.attestation.activate_credential(ek, ak, blob, secret)
            assert tpm.handles("loaded-session") == []
            with pytest.raises(EvidenceError, match="the credential is malformed"):
                opened.attestation.activate_credential(ek, ak, blob + b"\0", secret)
            with pytest.raises(EvidenceError, match="the credential is malformed"):
                opened.attestation.activate_credential(ek, ak, b"", secret)
    assert ("StartAuthSession" in trace.commands()) is not template.is_high


def test_another_refusal_than_the_credential_s_is_what_it_is(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        ak = opened.srk.create_attestation_key()
        with opened.endorsement.use(EkTemplate.ECC_P256) as ek:
            blob, secret = make_credential(ek.public, ak.public.name, bytes(32))
            tpm.tool("tpm2_changeauth", "-c", "e", "secret")
            with pytest.raises(AuthorizationError) as refusal:
                opened.attestation.activate_credential(ek, ak, blob, secret)
            assert "--endorsement-auth" in refusal.value.hint


def test_a_certification_names_the_key_and_carries_the_qualifying_data(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        ak = opened.srk.create_attestation_key()
        for algorithm in (KeyAlgorithm.ECC_P256, KeyAlgorithm.RSA_2048):
            with opened.srk.create_key(algorithm) as key:
                said = opened.attestation.certify(key, ak, b"fresh")
            attest = parse_attest(said.attest)
            verify_signature(said.attest, said.signature, ak.public)
            assert attest.extra_data == b"fresh"
            assert attest.attested.name == key.public.name  # type: ignore[union-attr]  # it is a Certify


def test_a_key_with_an_authorization_value_is_certified_with_it_only(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.persist(opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"secret")), 0x81000100)
    with open_tpm(tpm.tcti) as opened:
        ak = opened.srk.create_attestation_key()
        right = opened.use_persistent(0x81000100, authorization=Secret(b"secret"))
        assert opened.attestation.certify(right, ak, b"").attest
        with pytest.raises(AuthorizationError):
            opened.attestation.certify(opened.use_persistent(0x81000100), ak, b"")


def test_a_quote_is_of_the_selected_pcrs_and_carries_the_qualifying_data(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened, opened.srk.create_attestation_key() as ak:
        said = opened.attestation.quote(ak, b"fresh", {"sha256": [0, 7, 23], "sha1": range(8)})
    attest = parse_attest(said.attest)
    verify_signature(said.attest, said.signature, ak.public)
    assert attest.extra_data == b"fresh"
    assert isinstance(attest.attested, Quoted)
    assert attest.attested.selection == (("sha256", (0, 7, 23)), ("sha1", tuple(range(8))))
    assert trace.commands()[-2:] == ["Quote", "FlushContext"]


def test_a_storage_key_does_not_quote(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
        with pytest.raises(TpmRefusedError):
            opened.attestation.quote(opened.use_persistent(SRK_HANDLE), b"", {"sha256": [0]})
