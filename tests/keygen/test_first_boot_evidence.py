"""First boot without a secret on board: the TPM vouches for the key, and the project's own CA verifies that."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from support import lying_ca
from support.attested import COPY, DEVICE, AttestedBench
from support.authority import make_token
from support.lying_ca import LyingCa
from tpm_mtls.attestation_key import load_attestation_key, save_attestation_key
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.cli import run
from tpm_mtls.device_identity import EKU_ATTESTATION_KEY
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import (
    CertificateMismatchError,
    EvidenceRefusedError,
    HandleOccupiedError,
    IdentityError,
    RequestRefusedError,
    StateError,
    TokenRefusedError,
    TpmMemoryError,
)
from tpm_mtls.identity import ATTESTATION_KEY
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.attestation_key import make_attestation_key
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.first_boot_folder import Journal, KeyPlace, save_journal
from tpm_mtls_keygen.first_boot_settings import World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.patience import Patience
from tpm_mtls_pki.groups import ApprovalRule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

TSS2 = replace(COPY, place=KeyPlace.TSS2)


def policies(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
    return {each.policy_identifier.dotted_string for each in found}


@pytest.mark.parametrize("wish", [COPY, TSS2])
def test_a_tpm_of_a_known_maker_enrolls_by_itself(certified: AttestedBench, wish: Wish) -> None:
    certified.trust_maker()

    outcome = certified.run(wish=wish)

    assert outcome.record.device == f"ek-{certified.ek_hash()[:40]}"
    assert policies(certified.leaf()) == {"2.23.133.11.1.1", "2.23.133.11.1.2"}
    assert certified.record()["enrolled_by"] == "tpm"
    assert certified.record()["ek_sha256"] == certified.ek_hash()
    certified.assert_whole()
    assert certified.issued() == ["attestation", "device"]


def test_a_tpm_without_certificates_enrolls_where_the_list_has_its_hash(attested: AttestedBench) -> None:
    assert attested.run().record.device == DEVICE
    attested.assert_whole()


def test_the_attestation_key_s_certificate_is_kept(attested: AttestedBench) -> None:
    attested.run()

    key = load_attestation_key(attested.folder)

    assert key is not None
    assert key.certificate is not None
    certificate = x509.load_der_x509_certificate(key.certificate)
    assert certificate_spki(certificate) == key.area.spki
    assert EKU_ATTESTATION_KEY in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (attested.folder / ATTESTATION_KEY).stat().st_mode & 0o777 == 0o600


def test_a_refusal_says_what_the_ca_needs(certified: AttestedBench) -> None:
    with pytest.raises(RequestRefusedError, match=r"refused the evidence of this device's TPM \(403\)") as refusal:
        certified.run()

    assert "pki ek-roots add" in refusal.value.hint
    assert f"pki allow add --ek-hash {certified.ek_hash()}" in refusal.value.hint
    assert certified.last_audit().detail["check"] == 1
    certified.trust_maker()
    certified.run()  # with the keys that are there
    certified.assert_whole()


def test_a_tpm_without_certificate_and_token_says_what_to_do(
    attested: AttestedBench, make_tpm: Callable[[], SimulatedTpm]
) -> None:
    unknown = replace(attested, tpm=make_tpm())

    with pytest.raises(RequestRefusedError) as refusal:
        unknown.run()

    assert "this TPM has no EK certificate" in refusal.value.hint
    assert f"pki allow add --ek-hash {unknown.ek_hash()}" in refusal.value.hint
    assert "--token-file" in refusal.value.hint


def test_the_hash_that_keygen_shows_is_the_one_that_the_ca_takes(
    attested: AttestedBench, make_tpm: Callable[[], SimulatedTpm], capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tpm()
    assert run(["keygen", "show", "--ek", "--tcti", other.tcti]) == 0
    shown = capsys.readouterr().out.strip()

    command = ["pki", "allow", "add", "--ek-hash", shown, "--device", "sensor-18"]
    assert run([*command, "--ca-dir", str(attested.host.folder)]) == 0
    assert replace(attested, tpm=other).run().record.device == "sensor-18"


def test_an_approval_is_waited_for_and_the_nonce_is_a_new_one_each_time(certified: AttestedBench) -> None:
    certified.trust_maker(ApprovalRule.UNLISTED)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        certified.approve("sensor-9")

    with pytest.raises(RequestRefusedError, match="has not decided yet"):
        certified.run()
    outcome = certified.run(World(patience=Patience(seconds=3600, sleep=sleep)))

    assert outcome.record.device == "sensor-9"
    assert len(waited) == 1
    assert waited[0] >= 60  # what the CA asked for


def test_a_wished_name_is_asked_for_and_insisted_on(attested: AttestedBench) -> None:
    with pytest.raises(CertificateMismatchError, match=f"is for the device {DEVICE}, not for sensor-18"):
        attested.run(device="sensor-18")

    assert attested.run(device=DEVICE).record.device == DEVICE


@pytest.mark.parametrize("wish", [COPY, replace(COPY, evidence=True)])
def test_a_token_alone_or_with_evidence(certified: AttestedBench, tmp_path: Path, wish: Wish) -> None:
    """Without being told to, a device with a token shows the token only: the CA need not know the TPM's maker."""
    certified.trust_maker()
    token = tmp_path / "token"
    token.write_text(f"{DEVICE}:{make_token(certified.registrar, DEVICE)}\n")
    token.chmod(0o600)

    outcome = certified.run(token_file=token, wish=wish)

    assert outcome.record.device == DEVICE
    assert outcome.record.enrolled_by == ("tpm" if wish.evidence else "token")
    assert (certified.folder / ATTESTATION_KEY).exists() is wish.evidence
    assert certified.issued() == (["attestation", "device"] if wish.evidence else ["device"])


def test_a_wrong_token_with_good_evidence_is_refused(attested: AttestedBench, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{DEVICE}:AAAA\n")
    token.chmod(0o600)

    with pytest.raises(RequestRefusedError, match="refused the bootstrap token or the evidence"):
        attested.run(token_file=token, wish=replace(COPY, evidence=True))


def test_a_device_that_showed_its_tpm_does_not_get_by_with_a_token(attested: AttestedBench, tmp_path: Path) -> None:
    attested.run()
    token = tmp_path / "token"
    token.write_text(f"{DEVICE}:{make_token(attested.registrar, DEVICE)}\n")
    token.chmod(0o600)

    with pytest.raises(TokenRefusedError):
        attested.run(token_file=token, folder=tmp_path / "other", wish=Wish())


def test_a_ca_that_verifies_no_tpm_is_told(tpm: SimulatedTpm, attested: AttestedBench, tmp_path: Path) -> None:
    with LyingCa(tmp_path) as ca:
        ca.next("nonce", lying_ca.status(404, "no such page"))

        with pytest.raises(RequestRefusedError, match=r"answered 404 to nonce: it verifies no TPM") as refusal:
            attested.run(ca_url=ca.url, trust=ca.trust)

    assert "--token-file" in refusal.value.hint
    assert tpm.handles("persistent") == ["0x81000001", "0x81000100"]  # the next run goes on with it


# -- the wrong TPM, disk, key -----------------------------------------------------------------------------------------


def test_a_cleared_tpm_is_told_apart_from_another_one(attested: AttestedBench) -> None:
    attested.run()
    attested.tpm.tool("tpm2_clear", "-c", "p")

    with pytest.raises(IdentityError, match=r"is gone: nothing is there; the TPM was cleared\n"):
        attested.run()
    assert attested.issued() == ["attestation", "device"]  # nothing was enrolled anew


@pytest.mark.parametrize("wish", [COPY, TSS2])
def test_another_tpm_is_told(attested: AttestedBench, make_tpm: Callable[[], SimulatedTpm], wish: Wish) -> None:
    attested.run(wish=wish)

    with pytest.raises(IdentityError, match=r"this is another TPM: it was replaced, or the disk is another device's\n"):
        attested.run(tcti=make_tpm().tcti)


def test_the_disk_of_another_device_is_told_by_what_the_tpm_remembers(
    attested: AttestedBench, make_tpm: Callable[[], SimulatedTpm], tmp_path: Path
) -> None:
    attested.run()
    other = replace(attested, tpm=make_tpm(), folder=tmp_path / "other")
    other.allow("sensor-18")
    other.run()

    with pytest.raises(IdentityError, match=r"this is the disk of another device, the TPM belongs to sensor-18\n"):
        attested.run(tcti=other.tpm.tcti)


def test_a_removed_key_is_told(attested: AttestedBench) -> None:
    attested.run()
    attested.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(IdentityError, match=r"the device key .* is gone: nothing is there\n"):
        attested.run()


def test_an_attestation_key_of_unknown_origin_is_not_overwritten(attested: AttestedBench) -> None:
    attested.folder.mkdir()
    with open_tpm(attested.tpm.tcti) as opened:
        save_attestation_key(attested.folder, make_attestation_key(opened, read_endorsement(opened)))

    with pytest.raises(IdentityError, match=r"holds a attestation.key.json but neither"):
        attested.run()


def test_a_replaced_endorsement_key_is_check_2(attested: AttestedBench, make_tpm: Callable[[], SimulatedTpm]) -> None:
    """The file says that another endorsement key vouches than the TPM has."""
    with pytest.raises(CertificateMismatchError):
        attested.run(device="sensor-18")  # leaves a first boot that is not finished
    key = load_attestation_key(attested.folder)
    assert key is not None
    with open_tpm(make_tpm().tcti) as other:
        foreign = read_endorsement(other).public.data
    content = json.loads((attested.folder / ATTESTATION_KEY).read_text())
    content["ek_public"] = base64.b64encode(foreign).decode()
    (attested.folder / ATTESTATION_KEY).write_text(json.dumps(content))

    with pytest.raises(EvidenceRefusedError) as refusal:
        attested.run()
    assert refusal.value.check == 2


# -- a wiped disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [COPY, TSS2])
def test_after_the_disk_was_wiped_the_identity_comes_back_without_the_ca(attested: AttestedBench, wish: Wish) -> None:
    attested.run(wish=wish)
    before = attested.files()
    attested.wipe()

    outcome = attested.run(wish=COPY, ca_url="https://localhost:1")

    assert (outcome.changed, outcome.restored) == (True, True)
    assert attested.files() == before
    assert attested.issued() == ["attestation", "device"]
    attested.assert_whole()


def test_without_a_mirror_the_wiped_device_does_not_know_itself(attested: AttestedBench) -> None:
    attested.run(wish=Wish())
    assert attested.tpm.handles("nv-index") == []
    attested.wipe()

    attested.run(wish=Wish())

    assert attested.record()["key"] == "handle:0x81000101"


def test_an_identity_of_another_ca_does_not_come_back(attested: AttestedBench, tmp_path: Path) -> None:
    attested.run()
    attested.wipe()
    with (
        LyingCa(tmp_path) as ca,
        pytest.raises(
            IdentityError, match=f"remembers that this is {DEVICE}, but that identity cannot come back"
        ) as refusal,
    ):
        attested.run(trust=ca.trust)

    assert "--new-identity" in refusal.value.hint
    assert attested.files() == {}


def test_an_expired_identity_comes_back_only_as_a_new_one(attested: AttestedBench) -> None:
    attested.run()
    later = World(now=lambda: attested.registrar.clock() + timedelta(days=100))
    attested.wipe()

    with pytest.raises(IdentityError, match="cannot come back: the certificate expired"):
        attested.run(later)
    attested.run(wish=replace(COPY, anew=True))

    attested.assert_whole()
    assert attested.issued() == sorted(["attestation", "device"] * 2)


def test_a_given_up_identity_leaves_no_key_behind(attested: AttestedBench) -> None:
    first = attested.run().record
    attested.wipe()

    second = attested.run(wish=replace(COPY, anew=True)).record

    assert second.key == first.key == "handle:0x81000100"
    assert second.key_name != first.key_name
    attested.assert_whole()


def test_a_remembered_identity_whose_key_is_gone_is_told(attested: AttestedBench) -> None:
    attested.run()
    attested.wipe()
    attested.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(IdentityError, match="cannot come back: its key handle:0x81000100 is gone"):
        attested.run()
    attested.run(wish=replace(COPY, anew=True))
    attested.assert_whole()


def test_options_that_contradict_the_remembered_identity_are_refused(attested: AttestedBench) -> None:
    attested.run()
    attested.wipe()

    with pytest.raises(StateError, match="has the ecc-p256 key handle:0x81000100 already"):
        attested.run(wish=TSS2)


def test_somebody_else_s_nv_index_is_refused_before_anything_is_made(attested: AttestedBench) -> None:
    attested.tpm.tool("tpm2_nvdefine", "0x01500000", "-C", "o", "-s", "32", "-a", "ownerwrite|ownerread|authread")

    with pytest.raises(HandleOccupiedError, match="0x01500000, where a copy of the identity goes") as refusal:
        attested.run()

    assert refusal.value.handle == 0x01500000
    assert attested.tpm.handles("persistent") == []
    assert attested.tpm.handles("nv-index") == ["0x1500000"]
    attested.run(wish=Wish())
    assert attested.tpm.handles("nv-index") == ["0x1500000"]


def test_a_full_nv_memory_is_told_and_the_identity_is_complete(attested: AttestedBench) -> None:
    attested.run(wish=Wish())
    said = attested.record()
    journal = Journal(**{name: said[name] for name in ("key", "algorithm", "key_name", "srk_name")})
    save_journal(attested.folder, journal)  # as if it had been killed before the copy
    with open_tpm(attested.tpm.tcti) as opened:
        for index in range(0x01800000, 0x01800100):
            try:
                opened.nv.define(index, 2048)
            except TpmMemoryError:
                break

    with pytest.raises(TpmMemoryError, match="NV memory is full") as refusal:
        attested.run()

    assert "--no-mirror" in refusal.value.hint
    attested.run(wish=Wish())
    attested.assert_whole()


def test_two_identities_on_one_tpm_have_a_mirror_each(attested: AttestedBench, tmp_path: Path) -> None:
    attested.run()
    token = tmp_path / "token"
    token.write_text(f"second:{make_token(attested.registrar, 'second')}\n")
    token.chmod(0o600)
    other = replace(attested, folder=tmp_path / "second")
    other.run(token_file=token)
    attested.wipe()
    other.wipe()

    assert attested.run().record.device == DEVICE
    assert other.run(token_file=tmp_path / "gone").record.device == "second"
    assert device_name(other.leaf()) == "second"
