"""Changes of an identity, installed as if in one step; and what a damaged or contradicted plan is worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.certificates import certificate_spki, load_certificates
from tpm_mtls.errors import CertificateMismatchError, HandleOccupiedError, IdentityError, PemError, TpmMtlsError
from tpm_mtls.identity import load_record
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.first_boot_folder import INSTALL
from tpm_mtls_keygen.install import Installation, begin, complete, load_installation
from tpm_mtls_keygen.issued import find_attestation_certificate, parse_certificate
from tpm_mtls_keygen.keys import PersistentForm, create_key

if TYPE_CHECKING:
    from support.attested import AttestedBench


@pytest.fixture
def bench(attested: AttestedBench) -> AttestedBench:
    attested.run()
    return attested


def plan(bench: AttestedBench, **changes: object) -> Installation:
    record = load_record(bench.folder)
    assert record is not None
    certificates = (bench.folder / "device.cert.pem").read_bytes()
    return msgspec.structs.replace(Installation(record=record, certificates=certificates), **changes)


def test_a_plan_is_found_again_and_gone_when_it_is_done(bench: AttestedBench) -> None:
    before = bench.files()
    wanted = plan(bench)
    assert load_installation(bench.folder) is None
    begin(bench.folder, wanted)
    assert load_installation(bench.folder) == wanted
    assert (bench.folder / INSTALL).stat().st_mode & 0o777 == 0o600

    with open_tpm(bench.tpm.tcti) as tpm:
        complete(tpm, bench.folder, wanted)

    assert bench.files() == before


def test_first_boot_finishes_a_plan_and_says_so(bench: AttestedBench) -> None:
    begin(bench.folder, plan(bench, certificates=(bench.folder / "device.cert.pem").read_bytes()))

    assert bench.run().changed
    bench.assert_whole()


@pytest.mark.parametrize("change", [{"format": 2}, {"key": "AAAA"}, {"record": 1}, {"else": 1}])
def test_a_damaged_plan_is_told_and_nothing_is_changed(bench: AttestedBench, change: dict[str, object]) -> None:
    begin(bench.folder, plan(bench))
    path = bench.folder / INSTALL
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = bench.files()

    with pytest.raises(IdentityError, match=r"install.json (is damaged|has format 2)"):
        bench.run()
    assert bench.files() == before


def test_a_key_that_is_gone_meanwhile_is_told(bench: AttestedBench) -> None:
    begin(bench.folder, plan(bench))
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(IdentityError, match="the device key handle:0x81000100 is gone from the TPM"):
        bench.run()


def test_somebody_else_s_key_at_the_handle_stays(bench: AttestedBench) -> None:
    begin(bench.folder, plan(bench))
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")
    with open_tpm(bench.tpm.tcti) as tpm:
        foreign = create_key(tpm, KeyAlgorithm.ECC_P256, PersistentForm(0x81000100)).public.name

    with pytest.raises(HandleOccupiedError, match="something else is at handle:0x81000100"):
        bench.run()
    with open_tpm(bench.tpm.tcti) as tpm:
        assert tpm.read_public(0x81000100).public.name == foreign


# -- what an answer holds besides the device's certificate ------------------------------------------------------------


def test_an_attestation_certificate_of_another_ca_is_told(bench: AttestedBench) -> None:
    leaf, issuing = load_certificates(bench.folder / "device.cert.pem")
    public_key = certificate_spki(leaf)

    assert find_attestation_certificate([leaf], [issuing], public_key) == leaf.public_bytes(Encoding.DER)
    assert find_attestation_certificate([leaf], [issuing], b"another key") is None
    for issuers in ([], [leaf]):
        with pytest.raises(CertificateMismatchError, match="was issued by another CA"):
            find_attestation_certificate([leaf], issuers, public_key)


def test_a_damaged_certificate_is_told() -> None:
    with pytest.raises(PemError, match="a certificate is damaged"):
        parse_certificate(b"\x30\x00")


def test_errors_have_advice(bench: AttestedBench) -> None:
    begin(bench.folder, plan(bench))
    (bench.folder / INSTALL).write_text("{")

    with pytest.raises(TpmMtlsError) as refusal:
        bench.run()
    assert refusal.value.hint
