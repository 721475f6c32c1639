"""Files of sealed secrets: what is written is read again, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.policies import Operator, pcr_policy
from support.sealing import sealed_object_of
from tpm_mtls.errors import PemError
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr
from tpm_mtls.sealed_blob import (
    FILE_LIMIT,
    SECRET_LIMIT,
    SealedBlob,
    open_payload,
    parse_blob,
    payload_for,
)
from tpm_mtls.structures import KeyAlgorithm, Tss2Key
from tpm_mtls.structures.tss2_file import Kind, Tss2File
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

SRK_NAME = b"\x00\x0b" + bytes(32)
PCRS = pcr_policy({0: "11" * 32, 7: "22" * 32})
POLICY = (PCRS, PolicyAuthValue())
ALTERNATIVES = (PolicyOr(branches=((PCRS,), (pcr_policy(),))),)


def make_blob(secret: bytes = b"secret", seed: str = "one", policy: tuple = POLICY) -> tuple[SealedBlob, bytes]:  # type: ignore[type-arg]  # of assertions, which the fixtures name
    """A blob, and what the TPM would give back for it."""
    payload = payload_for(secret)
    sealed = sealed_object_of(seed, policy)
    ciphertext = payload.ciphertext(sealed.public.name)
    return SealedBlob(
        sealed, SRK_HANDLE, empty_auth=False, srk=SRK_NAME, policy=policy, ciphertext=ciphertext
    ), payload.data


def blocks(data: bytes) -> dict[str, bytes]:
    """The blocks of a file, by their labels."""
    found = re.findall(rb"(-----BEGIN ([^-]*(?:-[^-]+)*)-----.*?-----END \2-----\n)", data, re.DOTALL)
    return {label.decode(): block for block, label in found}


def block(label: str, content: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.b64encode(content).decode()}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize("policy", [(), (PCRS,), POLICY, ALTERNATIVES], ids=["none", "PCRs", "two", "alternatives"])
@pytest.mark.parametrize("size", [1, 128, 129, SECRET_LIMIT])
def test_what_is_written_is_read_again(size: int, policy: tuple) -> None:  # type: ignore[type-arg]  # as above
    secret = b"s" * size
    blob, payload = make_blob(secret, policy=policy)
    data = blob.encode()
    assert parse_blob(data) == blob
    assert open_payload(payload, parse_blob(data)) == secret
    contents = [base64.b64decode(b"".join(each.split(b"\n")[1:-2])) for each in blocks(data).values()]
    assert not any(b"s" * 16 in each for each in (data, *contents))  # four in a row come by chance: once in 200 files
    assert base64.b64encode(secret)[:40] not in data
    assert len(payload) <= 128
    assert len(data) < FILE_LIMIT


def test_other_line_ends_and_empty_lines_do_not_matter() -> None:
    blob, _ = make_blob(b"s" * 200)
    assert parse_blob(b"\n" + blob.encode().replace(b"\n", b"\r\n") + b"\r\n\r\n") == blob


def test_the_first_block_is_the_standards() -> None:
    """As openssl reads it: the type, emptyAuth, the policy's commands, the parent, TPM2B_PUBLIC and TPM2B_PRIVATE."""
    blob, _ = make_blob()
    shown = subprocess.run(["openssl", "asn1parse"], input=blob.encode(), capture_output=True, check=True).stdout
    values = re.findall(r"(?:prim|cons): (.*?)\s*$", shown.decode(), re.MULTILINE)
    assert values[1] == "OBJECT            :2.23.133.10.1.5"
    assert values[3] == "BOOLEAN           :0"
    assert "INTEGER           :017F" in values
    assert "INTEGER           :016B" in values
    assert values[-3] == "INTEGER           :81000001"
    assert values[-2].endswith(blob.sealed.public_file.hex().upper())
    assert values[-1].endswith(blob.sealed.private_file.hex().upper())


def test_a_policy_that_the_standard_cannot_say_is_in_the_record_alone() -> None:
    blob, _ = make_blob(policy=ALTERNATIVES)
    shown = subprocess.run(["openssl", "asn1parse"], input=blob.encode(), capture_output=True, check=True).stdout
    assert b":017F" not in shown
    assert parse_blob(blob.encode()).policy == ALTERNATIVES


@given(st.binary(min_size=1, max_size=300))
@example(b"tpm-mtls envelope 1\0")
@example(b"tpm-mtls envelope 1\0" + bytes(32))
def test_every_secret_comes_back(secret: bytes) -> None:
    """Those that look like what is sealed for a large one, too."""
    blob, payload = make_blob(secret)
    assert open_payload(payload, blob) == secret
    assert (blob.ciphertext is None) == (payload == secret)


@given(st.data())
def test_a_damaged_file_is_refused_or_means_the_same(data: st.DataObject) -> None:
    """Whatever is changed in it: never another error, and never another secret."""
    secret = b"s" * 150
    blob, payload = make_blob(secret)
    file = bytearray(blob.encode())
    position = data.draw(st.integers(0, len(file) - 1))
    file[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(file))))
    try:
        found = parse_blob(bytes(file[:cut]))
        assert found.sealed.private != blob.sealed.private or open_payload(payload, found) == secret
    except PemError:
        pass


@given(st.binary(max_size=500))
def test_what_is_no_blob_is_refused(data: bytes) -> None:
    with pytest.raises(PemError, match="no usable sealed data"):
        parse_blob(data)


def test_parts_of_two_blobs_do_not_go_together() -> None:
    (one, payload), (two, _) = make_blob(b"s" * 200), make_blob(b"t" * 200, "two")
    first, second = blocks(one.encode()), blocks(two.encode())
    tss2, record, secret = first
    assert b"".join(first.values()) == one.encode()
    with pytest.raises(PemError, match="its record is of something else"):
        parse_blob(first[tss2] + second[record] + first[secret])
    exchanged = parse_blob(first[tss2] + first[record] + second[secret])
    with pytest.raises(PemError, match="damaged, or of another blob"):
        open_payload(payload, exchanged)


def test_a_key_is_never_taken_for_the_secret() -> None:
    """Without its third block a file's sealed data is a key, and with one too many it is none."""
    large, key = make_blob(b"s" * 200)
    with pytest.raises(PemError, match="the block with the secret is missing"):
        open_payload(key, replace(large, ciphertext=None))
    small, secret = make_blob(b"s" * 52)
    with pytest.raises(PemError, match="a block does not belong to it"):
        open_payload(secret, replace(small, ciphertext=large.ciphertext))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda found: b"".join(list(found.values())[1:]), "it has no block TSS2 PRIVATE KEY"),
        (lambda found: b"".join(found.values()) * 2, "a block TSS2 PRIVATE KEY that does not belong there"),
        (lambda found: b"".join(found.values()) + block("CERTIFICATE", b"x"), "a block CERTIFICATE"),
        (lambda found: b"".join(found.values()) + b"more", "something else in it"),
        (lambda found: b"".join(found.values())[:-30], "it is cut off"),
        (lambda found: found["TSS2 PRIVATE KEY"].replace(b"M", b"=", 1), "its content is damaged"),
        (lambda found: b" " * (FILE_LIMIT + 1) + found["TSS2 PRIVATE KEY"], "larger than"),
        (lambda found: found["TSS2 PRIVATE KEY"] + block("TPM-MTLS SEALED DATA", bytes(28)), "no possible size"),
        (lambda found: found["TSS2 PRIVATE KEY"] + block("TPM-MTLS SEALED DATA", bytes(65565)), "no possible size"),
        (
            lambda found: (
                found["TSS2 PRIVATE KEY"]
                + b"-----BEGIN TPM-MTLS SEALED RECORD-----\nA\n-----END TPM-MTLS SEALED RECORD-----"
            ),
            "no base64",
        ),
    ],
)
def test_blocks_that_should_not_be_there_or_lack_are_named(change, why: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - of the blocks
    with pytest.raises(PemError, match=why):
        parse_blob(change(blocks(make_blob(b"s" * 200)[0].encode())))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 2}, "has format 2, expected 1"),
        ({"format": "1"}, "its record is damaged: expected `int`"),
        ({"name": "00"}, "its record is damaged"),
        ({"more": 1}, "unknown field `more`"),
        ({"policy": []}, None),
        ({"policy": [{"type": "auth-value"}]}, "another policy than what the TPM sealed"),
        ({"policy": [{"type": "or", "branches": []}]}, "2 to 8 branches"),
        ({"srk": "xyz"}, "its record is damaged"),
    ],
)
def test_records_are_read_strictly(changes: dict[str, object], why: str | None) -> None:
    blob, _ = make_blob()
    found = blocks(blob.encode())
    label = "TPM-MTLS SEALED RECORD"
    body = b"".join(found[label].splitlines()[1:-1])
    record = json.loads(base64.b64decode(body)) | changes
    data = found["TSS2 PRIVATE KEY"] + block(label, json.dumps(record).encode())
    if why is None:  # nobody says it then, and the TPM will
        assert parse_blob(data).policy == ()
        return
    with pytest.raises(PemError, match=why):
        parse_blob(data)


def test_a_record_that_is_no_json_is_refused() -> None:
    tss2 = blocks(make_blob()[0].encode())["TSS2 PRIVATE KEY"]
    for content in (b"{", b"\xff", b"[" * 10000):
        with pytest.raises(PemError, match="its record is damaged"):
            parse_blob(tss2 + block("TPM-MTLS SEALED RECORD", content))


def test_a_tls_key_is_no_sealed_data(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened, opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
        pem = Tss2Key(key.public, key.private, parent=SRK_HANDLE, empty_auth=True).to_pem()
        mislabelled = Tss2File(Kind.SEALED, key.public, key.private, parent=SRK_HANDLE, empty_auth=True).to_pem()
    with pytest.raises(PemError, match="it holds a loadable key, no sealed data"):
        parse_blob(pem)
    with pytest.raises(PemError, match="no sealed data, but a key: ecc-p256"):
        parse_blob(mislabelled)


def test_a_file_without_a_record_is_another_tools(tmp_path: Path) -> None:
    sealed = sealed_object_of("theirs", (Operator(tmp_path).authorize(),))
    for kind in (Kind.SEALED, Kind.LOADABLE):  # tpm2_encodeobject says the latter
        data = Tss2File(
            kind, sealed.public, sealed.private, parent=0x40000001, empty_auth=True, rsa_parent=True
        ).to_pem()
        assert parse_blob(data) == SealedBlob(sealed, 0x40000001, empty_auth=True, rsa_parent=True)
