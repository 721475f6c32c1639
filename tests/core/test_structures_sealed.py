"""Sealed data and NV indices as values and files: ours, those of other tools, and damaged ones."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from support.policies import Operator, pcr_policy
from tpm_mtls.errors import CredentialError, PemError
from tpm_mtls.files import PEM_LIMIT
from tpm_mtls.policy.digest import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_PCR, policy_digest
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr
from tpm_mtls.policy.files import FoundPolicy
from tpm_mtls.policy.key_file import approved_policies, policy_commands
from tpm_mtls.structures import (
    NvAttribute,
    NvPublic,
    SealedObject,
    Tss2Key,
    parse_public_area,
    parse_sealed_pem,
    parse_tss2_pem,
    read_sealed_files,
    sealed_part,
)
from tpm_mtls.structures.nv_public import parse_nv_public
from tpm_mtls.structures.sealed import sealed_object
from tpm_mtls.structures.tss2_file import PRIVATE_LIMIT, Kind, Tss2File

if TYPE_CHECKING:
    from pathlib import Path

# TPMT_PUBLIC: keyedhash, SHA-256; fixedTPM, fixedParent, userWithAuth, noDA; no policy, no scheme, and its unique part
_SEALED = bytes.fromhex("0008 000b 00000452 0000 0010 0020" + "5a" * 32)
_HMAC_KEY = bytes.fromhex("0008 000b 00040452 0000 0010 0020" + "5a" * 32)
_KEY = bytes.fromhex(
    "0023000b00040472 0000 0010 0010 0003 0010"
    "0020 6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "0020 4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
SEALED = SealedObject(parse_public_area(_SEALED), b"\x05" * 160)
FILE = Tss2File(Kind.SEALED, SEALED.public, SEALED.private, parent=0x81000001, empty_auth=True)
INDEX = NvPublic(0x01520000, 64, NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA)


def test_tpm2_tools_files_are_sized_structures() -> None:
    assert SEALED.public_file == len(_SEALED).to_bytes(2, "big") + _SEALED
    assert SEALED.private_file == b"\x00\xa0" + b"\x05" * 160
    assert read_sealed_files(SEALED.public_file, SEALED.private_file) == SEALED


@pytest.mark.parametrize("cut", [-1, 2, 1, 0])
def test_files_that_are_cut_off_are_refused(cut: int) -> None:
    with pytest.raises(PemError, match="private part has another size than it says"):
        read_sealed_files(SEALED.public_file, SEALED.private_file[:cut])
    with pytest.raises(PemError, match="public part has another size than it says"):
        read_sealed_files(SEALED.public_file[:cut], SEALED.private_file)
    with pytest.raises(PemError, match="has another size"):
        read_sealed_files(SEALED.public_file, SEALED.private_file + b"x")


def test_a_private_part_that_no_tpm_made_is_refused() -> None:
    oversized = (PRIVATE_LIMIT + 1).to_bytes(2, "big") + bytes(PRIVATE_LIMIT + 1)
    with pytest.raises(PemError, match=f"private part has {PRIVATE_LIMIT + 1} bytes"):
        read_sealed_files(SEALED.public_file, oversized)


@pytest.mark.parametrize("area", [_KEY, _HMAC_KEY])
def test_a_key_is_no_sealed_data(area: bytes) -> None:
    with pytest.raises(PemError, match="no sealed data, but a key"):
        sealed_object(parse_public_area(area), b"\x05")
    with pytest.raises(PemError, match="no sealed data, but a key"):
        parse_sealed_pem(replace(FILE, public=parse_public_area(area)).to_pem())


def test_a_pem_file_is_read_again_and_its_type_is_the_standard_s() -> None:
    pem = FILE.to_pem()
    assert parse_sealed_pem(pem) == FILE
    assert parse_sealed_pem(b"something before\n" + pem + b"and after") == FILE
    assert sealed_part(FILE) == SEALED
    der = subprocess.run(
        ["openssl", "asn1parse"], input=pem.replace(b"TSS2 ", b""), capture_output=True, check=True
    ).stdout.decode()
    assert "2.23.133.10.1.5" in der


def test_a_pem_file_carries_the_policy(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    other = Operator(tmp_path)
    policy = (operator.authorize(b"disk"), PolicyAuthValue())
    found = [
        FoundPolicy(tmp_path, operator.sign(pcr_policy(), policy_ref=b"disk", description="kernel 6.12")),
        FoundPolicy(tmp_path, operator.sign(pcr_policy({4: "11" * 32}), policy_ref=b"disk", version=2)),
        FoundPolicy(tmp_path, operator.sign(pcr_policy())),
        FoundPolicy(tmp_path, other.sign(pcr_policy(), policy_ref=b"disk")),
    ]
    file = replace(FILE, policy=policy_commands(policy), approved=approved_policies(policy, found), description="LUKS")
    assert parse_sealed_pem(file.to_pem()) == file
    assert [each.code for each in file.policy] == [POLICY_AUTHORIZE, POLICY_AUTH_VALUE]
    assert [each.description for each in file.approved] == ["kernel 6.12", "version 2"]
    assert [each.code for each in file.approved[0].commands] == [POLICY_AUTHORIZE, POLICY_PCR, POLICY_AUTH_VALUE]
    assert approved_policies((), found) == approved_policies((pcr_policy(),), found) == ()


def test_alternatives_do_not_fit_into_the_standard_s_form() -> None:
    branches = (pcr_policy(),), (pcr_policy({4: "11" * 32}),)
    with pytest.raises(CredentialError, match="cannot express a policy with alternatives"):
        policy_commands((PolicyOr(branches=branches),))


def test_a_key_file_and_a_sealed_file_are_not_taken_for_each_other() -> None:
    key = Tss2Key(parse_public_area(_KEY), b"\x05" * 126, parent=0x81000001, empty_auth=True)
    with pytest.raises(
        PemError, match="blob is no usable sealed data: it holds a loadable key, no sealed data"
    ) as refusal:
        parse_sealed_pem(key.to_pem(), "blob")
    assert "tpm-mtls seal" in refusal.value.hint
    with pytest.raises(PemError, match="k is no usable TSS2 key: it holds sealed data, no loadable key"):
        parse_tss2_pem(FILE.to_pem(), "k")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no complete TSS2 PRIVATE KEY block"),
        (FILE.to_pem()[:-10], "no complete TSS2 PRIVATE KEY block"),
        (b"x" * (PEM_LIMIT + 1), f"larger than {PEM_LIMIT} bytes"),
        (FILE.to_pem()[:40] + FILE.to_pem()[44:], "its content is damaged or truncated"),
        (replace(FILE, parent=0).to_pem(), "its parent is no handle"),
        (replace(FILE, private=b"").to_pem(), "its private part has 0 bytes"),
    ],
)
def test_a_damaged_pem_file_is_told(data: bytes, message: str) -> None:
    with pytest.raises(PemError, match=message):
        parse_sealed_pem(data)


@given(st.data())
def test_a_pem_file_with_one_wrong_byte_is_another_one_or_one_kind_of_error(data: st.DataObject) -> None:
    pem = bytearray(FILE.to_pem())
    position = data.draw(st.integers(0, len(pem) - 1))
    pem[position] = data.draw(st.integers(0, 255))
    try:
        parse_sealed_pem(bytes(pem))
    except PemError as error:
        assert error.hint  # noqa: PT017 - most are damaged, but some only elsewhere


def test_the_name_of_an_nv_index_is_what_libtss2_computes() -> None:
    policy = policy_digest((pcr_policy(),))
    for index in (
        INDEX,
        replace(INDEX, written=False),
        replace(INDEX, size=768, policy=policy, attributes=NvAttribute.POLICYREAD | NvAttribute.OWNERWRITE),
    ):
        theirs = TPM2B_NV_PUBLIC(nvPublic=TPMS_NV_PUBLIC.unmarshal(index.data)[0])
        assert bytes(theirs.nvPublic.marshal()) == index.data
        assert bytes(theirs.get_name()) == index.name
    assert replace(INDEX, written=False).name != INDEX.name


@given(
    index=st.integers(0x01000000, 0x01FFFFFF),
    size=st.integers(0, 0xFFFF),
    attributes=st.sampled_from(list(NvAttribute)[:-1]).map(NvAttribute),
    policy=st.binary(max_size=64),
    written=st.booleans(),
)
def test_an_nv_index_is_read_again(
    index: int, size: int, attributes: NvAttribute, policy: bytes, *, written: bool
) -> None:
    public = NvPublic(index, size, attributes, policy, written=written)
    assert parse_nv_public(public.data) == public


@given(st.binary(max_size=60))
def test_what_is_no_nv_index_is_refused(data: bytes) -> None:
    try:
        public = parse_nv_public(data)
    except PemError as error:
        assert error.hint  # noqa: PT017 - most inputs are malformed, a few are not
        return
    assert public.data == data


def test_a_counter_and_another_hash_are_no_ordinary_index() -> None:
    counter = bytearray(INDEX.data)
    counter[9] |= 0x10
    sha384 = bytearray(INDEX.data)
    sha384[5] = 0x0C
    for data in (counter, sha384):
        with pytest.raises(PemError, match="it is no ordinary index with SHA-256"):
            parse_nv_public(bytes(data))
    for cut in (0, 13, len(INDEX.data) - 1):
        with pytest.raises(PemError, match="unusable NV index: malformed"):
            parse_nv_public(INDEX.data[:cut])
