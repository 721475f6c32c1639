"""Endorsement keys of a real (simulated) TPM, and what its maker may have put into the NV memory beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from tpm2_pytss.types import TPMS_ECC_POINT, TPMT_PUBLIC, TPMU_PUBLIC_ID

from tpm_mtls.certificates import certificate_spki
from tpm_mtls.errors import AuthorizationError, EvidenceError
from tpm_mtls.structures import EkTemplate, ek_template, find_ek_template, parse_public_area
from tpm_mtls.tpm import Tpm, open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def opened(tpm: SimulatedTpm) -> Iterator[Tpm]:
    with open_tpm(tpm.tcti) as found:
        yield found


def put(tpm: Tpm, index: int, content: bytes) -> None:
    tpm.nv.define(index, len(content))
    tpm.nv.write(index, content)


def test_the_certificates_are_those_that_tpm2_tools_read(make_tpm: Callable[..., SimulatedTpm], tmp_path: Path) -> None:
    tpm = make_tpm(ek_certificates=True)
    with open_tpm(tpm.tcti) as opened:
        keys = opened.endorsement
        assert keys.certified() == (EkTemplate.HIGH_ECC_P384, EkTemplate.RSA_2048)
        assert keys.certificate(EkTemplate.ECC_P256) is None
        assert keys.chain() == ()
        for template in keys.certified():
            tpm.tool("tpm2_nvread", f"{template.certificate_index:#x}", "-o", "nv", cwd=tmp_path)
            der = keys.certificate(template)
            assert der is not None
            assert (tmp_path / "nv").read_bytes().startswith(der)
            with keys.use(template) as key:
                assert key.public.spki == certificate_spki(x509.load_der_x509_certificate(der))
                assert find_ek_template(key.public) is template


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256, EkTemplate.HIGH_ECC_P256, EkTemplate.HIGH_ECC_P384])
def test_a_key_that_is_not_persistent_is_made_from_its_template(opened: Tpm, template: EkTemplate) -> None:
    with opened.endorsement.use(template) as key:
        assert find_ek_template(key.public) is template


def test_an_rsa_key_is_the_one_that_tpm2_tools_make(opened: Tpm, tpm: SimulatedTpm, tmp_path: Path) -> None:
    with opened.endorsement.use(EkTemplate.RSA_2048) as key:
        public = key.public
    tpm.tool("tpm2_createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub", cwd=tmp_path)
    tpm.flush()

    assert (tmp_path / "ek.pub").read_bytes()[2:] == public.data


def test_something_else_at_the_key_s_handle_stays_and_is_not_used(
    opened: Tpm, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    tpm.tool("tpm2_createprimary", "-C", "e", "-G", "ecc", "-a", attributes, "-c", "p.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81010002", cwd=tmp_path)
    tpm.flush()

    with opened.endorsement.use(EkTemplate.ECC_P256) as key:
        assert find_ek_template(key.public) is EkTemplate.ECC_P256
    assert "0x81010002" in tpm.handles("persistent")


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256, EkTemplate.RSA_2048])
def test_the_maker_s_nonce_makes_another_key(opened: Tpm, template: EkTemplate) -> None:
    assert template.nonce_index is not None
    with opened.endorsement.use(template) as key:
        plain = key.public
    nonce = b"\x05" * 20
    put(opened, template.nonce_index, nonce)

    with open_again(opened).use(template) as key:
        assert find_ek_template(key.public) is template
        assert key.public.spki != plain.spki


def open_again(tpm: Tpm) -> object:
    """The endorsement keys of a connection that has not listed the NV memory yet."""
    return type(tpm.endorsement)(tpm, tpm.nv, tpm._resources)


def test_the_nonce_goes_where_the_profile_says(opened: Tpm) -> None:
    """B.2: at the beginning of ``unique``, followed by zeros; the same template by hand makes the same key."""
    put(opened, 0x01C0000B, b"\x05" * 20)
    area, _ = TPMT_PUBLIC.unmarshal(ek_template(EkTemplate.ECC_P256))
    area.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=b"\x05" * 20 + bytes(12), y=bytes(32)))

    with open_again(opened).use(EkTemplate.ECC_P256) as ours:
        public = ours.public
    put(opened, EkTemplate.ECC_P256.template_index, bytes(area.marshal()))
    opened.nv.remove(0x01C0000B)
    with open_again(opened).use(EkTemplate.ECC_P256) as by_template:
        assert by_template.public.data == public.data


def test_the_maker_s_template_replaces_the_usual_one(opened: Tpm) -> None:
    own, _ = TPMT_PUBLIC.unmarshal(ek_template(EkTemplate.HIGH_ECC_P256))
    own.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=b"maker", y=b""))
    put(opened, EkTemplate.HIGH_ECC_P256.template_index, bytes(own.marshal()))

    with opened.endorsement.use(EkTemplate.HIGH_ECC_P256) as key:
        made = key.public
    opened.nv.remove(EkTemplate.HIGH_ECC_P256.template_index)
    with open_again(opened).use(EkTemplate.HIGH_ECC_P256) as key:
        assert key.public.spki != made.spki


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 20, "is malformed|does not make a key"),
        (b"\xff" * 20, "is malformed"),
        (ek_template(EkTemplate.RSA_2048), "does not make a key of ecc-p256"),
        (ek_template(EkTemplate.HIGH_ECC_P384), "does not make a key of ecc-p256"),
        (ek_template(EkTemplate.ECC_P256) + b"\0", "does not make a key of ecc-p256"),
    ],
)
def test_another_template_in_its_place_is_told(opened: Tpm, content: bytes, message: str) -> None:
    put(opened, EkTemplate.ECC_P256.template_index, content)

    with pytest.raises(EvidenceError, match=message):
        opened.endorsement.use(EkTemplate.ECC_P256)


def test_a_chain_may_span_several_indices_and_end_in_padding(opened: Tpm) -> None:
    one = b"\x30\x82\x01\x00" + bytes(256)
    two = b"\x30\x82\x03\x00" + bytes(768)
    whole = one + two + b"\xff" * 30
    put(opened, 0x01C00100, whole[:700])
    put(opened, 0x01C00101, whole[700:])

    assert open_again(opened).chain() == (one, two)


def test_a_certificate_ends_where_it_says(opened: Tpm) -> None:
    one = b"\x30\x82\x01\x00" + bytes(256)
    put(opened, EkTemplate.ECC_P256.certificate_index, one + bytes(40))

    assert opened.endorsement.certificate(EkTemplate.ECC_P256) == one


@pytest.mark.parametrize("content", [b"\0" * 300, b"\x30\x82\xff\xff" + bytes(100), b"\x30", b"\x30\x82\x01\x00short"])
def test_no_certificate_in_a_certificate_s_place_is_told(opened: Tpm, content: bytes) -> None:
    put(opened, EkTemplate.ECC_P256.certificate_index, content)

    with pytest.raises(EvidenceError, match="no EK certificate at NV 0x01c0000a but something else"):
        opened.endorsement.certificate(EkTemplate.ECC_P256)


def test_an_endorsement_hierarchy_with_a_password_needs_it(tpm: SimulatedTpm) -> None:
    from tpm_mtls.authorization import Secret

    tpm.tool("tpm2_changeauth", "-c", "e", "secret")
    with open_tpm(tpm.tcti) as opened, pytest.raises(AuthorizationError) as refusal:
        opened.endorsement.use(EkTemplate.ECC_P256)
    assert "--endorsement-auth" in refusal.value.hint

    right = Secret(b"secret")
    with open_tpm(tpm.tcti, endorsement_authorization=right) as opened, opened.endorsement.use(EkTemplate.ECC_P256):
        pass


def test_the_attestation_key_is_what_its_template_says(opened: Tpm, tpm: SimulatedTpm, tmp_path: Path) -> None:
    with opened.srk.create_attestation_key() as key:
        said = parse_public_area(key.public.data)

    assert said.scheme == "ecdsa-sha256"
    assert set(said.attribute_words) == {
        *("fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA", "restricted", "sign"),
    }
    (tmp_path / "ak.pub").write_bytes(len(said.data).to_bytes(2, "big") + said.data)
    shown = tpm.tool("tpm2_print", "-t", "TPM2B_PUBLIC", "ak.pub", cwd=tmp_path).stdout
    assert "restricted" in shown
