"""TSS2 PRIVATE KEY files: ours, those of other tools, and damaged ones."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import CredentialError, PemError
from tpm_mtls.files import PEM_LIMIT
from tpm_mtls.structures import Tss2Key, parse_public_area, parse_tss2_pem

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "tsskeys"

_PUBLIC = bytes.fromhex(
    "0023000b00040472 0000 0010 0010 0003 0010"
    "0020 6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "0020 4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
_OID = bytes.fromhex("0606678105 0a0103")
_TRUE = bytes.fromhex("a003 0101ff")
_PARENT = bytes.fromhex("0205 0081000001")


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    octets_needed = (length.bit_length() + 7) // 8
    size = bytes([length]) if length < 128 else bytes([0x80 | octets_needed]) + length.to_bytes(octets_needed, "big")
    return bytes([tag]) + size + content


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def octets(content: bytes) -> bytes:
    return der(0x04, sized(content))


def pem(content: bytes, label: str = "TSS2 PRIVATE KEY") -> bytes:
    text = base64.b64encode(content)
    body = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n".encode() + body + f"-----END {label}-----\n".encode()


def key_file(
    optional: bytes = _TRUE,
    *,
    oid: bytes = _OID,
    parent: bytes = _PARENT,
    public: bytes | None = None,
    private: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A TPMKey by hand, each part replaceable."""
    parts = [oid, optional, parent, public or octets(_PUBLIC), private or octets(b"\x05" * 126)]
    return pem(der(0x30, b"".join(parts)) + tail)


KEY = Tss2Key(parse_public_area(_PUBLIC), b"\x05" * 126, parent=0x81000001, empty_auth=True)


def test_what_is_written_is_read_again() -> None:
    assert parse_tss2_pem(KEY.to_pem()) == KEY


def test_it_is_written_in_the_four_field_form_with_true_as_0xff() -> None:
    assert KEY.to_pem() == key_file()
    lines = KEY.to_pem().splitlines()
    assert max(map(len, lines)) == 64


def test_a_key_with_an_authorization_value_is_written_with_false() -> None:
    key = Tss2Key(KEY.public, KEY.private, parent=0x81000001, empty_auth=False)
    assert key.to_pem() == key_file(bytes.fromhex("a003 010100"))
    assert not parse_tss2_pem(key.to_pem()).empty_auth


def test_true_as_0x01_is_accepted() -> None:
    assert parse_tss2_pem(key_file(bytes.fromhex("a003 010101"))) == KEY


def test_any_other_boolean_is_refused() -> None:
    with pytest.raises(PemError, match="damaged or truncated"):
        parse_tss2_pem(key_file(bytes.fromhex("a003 010102")))


def test_an_absent_empty_auth_means_false() -> None:
    assert not parse_tss2_pem(key_file(b"")).empty_auth


def test_the_optional_fields_are_read() -> None:
    policy = der(0xA1, der(0x30, der(0x30, der(0xA0, bytes.fromhex("0202017f")) + der(0xA1, der(0x04, b"x")))))
    secret = der(0xA2, der(0x04, b"secret"))
    named = der(0xA0, der(0x0C, b"a")) + der(0xA1, der(0x30, b""))
    auth_policy = der(0xA3, der(0x30, der(0x30, named)))
    description = der(0xA4, der(0x0C, "Gerät".encode()))
    rsa_parent = der(0xA5, bytes.fromhex("0101ff"))
    key = parse_tss2_pem(key_file(_TRUE + policy + secret + auth_policy + description + rsa_parent))

    assert key.has_policy
    assert key.rsa_parent
    assert key.description == "Gerät"
    assert key.public == KEY.public
    assert not parse_tss2_pem(key_file(_TRUE + description)).has_policy


def test_a_certificate_may_stand_before_the_key() -> None:
    assert parse_tss2_pem(pem(b"anything", "CERTIFICATE") + KEY.to_pem()) == KEY


def test_windows_line_ends_are_accepted() -> None:
    assert parse_tss2_pem(KEY.to_pem().replace(b"\n", b"\r\n")) == KEY


@pytest.mark.parametrize(
    ("data", "what"),
    [
        pytest.param(b"", "no complete TSS2 PRIVATE KEY block", id="empty"),
        pytest.param(KEY.to_pem()[:200], "no complete TSS2 PRIVATE KEY block", id="cut off"),
        pytest.param(pem(b"x", "PRIVATE KEY"), "no complete TSS2 PRIVATE KEY block", id="another label"),
        pytest.param(b" " * (PEM_LIMIT + 1), "larger than 65536 bytes", id="oversized"),
        pytest.param(pem(b""), "damaged or truncated", id="no content"),
        pytest.param(KEY.to_pem().replace(b"=", b"A=", 1), "damaged or truncated", id="bad base64"),
        pytest.param(key_file(tail=b"\x00"), "damaged or truncated", id="trailing bytes"),
        pytest.param(key_file(bytes.fromhex("a004 0101ff00")), "damaged or truncated", id="bad explicit tag"),
        pytest.param(key_file(oid=_OID[:-1] + b"\x04"), "an importable key, no loadable key", id="importable"),
        pytest.param(key_file(oid=_OID[:-1] + b"\x05"), "sealed data, no loadable key", id="sealed"),
        pytest.param(key_file(oid=bytes.fromhex("06032a0304")), r"type 1\.2\.3\.4, no loadable key", id="another type"),
        pytest.param(key_file(parent=bytes.fromhex("0206 008100000100")), "its parent is no handle", id="wide parent"),
        pytest.param(key_file(parent=bytes.fromhex("0201ff")), "its parent is no handle", id="negative parent"),
        pytest.param(key_file(public=der(0x04, b"\x00")), "public part has another size", id="public too short"),
        pytest.param(
            key_file(public=der(0x04, b"\xff\xff" + _PUBLIC)), "public part has another size", id="public size"
        ),
        pytest.param(key_file(public=octets(b"\x00" * 1100)), "more than 1024 bytes", id="public too long"),
        pytest.param(key_file(public=octets(_PUBLIC[:-4])), "malformed public area", id="public truncated"),
        pytest.param(key_file(private=der(0x04, b"\x00\x09\x00")), "private part has another size", id="private size"),
        pytest.param(key_file(private=octets(b"")), "private part has 0 bytes", id="private empty"),
        pytest.param(key_file(private=octets(b"\x05" * 2000)), "private part has 2000 bytes", id="private too long"),
    ],
)
def test_what_is_no_usable_key_is_refused_and_named(data: bytes, what: str) -> None:
    with pytest.raises(PemError, match=what):
        parse_tss2_pem(data, "device.key.pem")


def test_the_error_says_which_file() -> None:
    with pytest.raises(PemError, match=r"device\.key\.pem is no usable TSS2 key"):
        parse_tss2_pem(b"", "device.key.pem")


@given(st.data())
def test_mutated_or_truncated_input_raises_nothing_but_a_credential_error(data: st.DataObject) -> None:
    content = bytearray(base64.b64decode(b"".join(KEY.to_pem().splitlines()[1:-1])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    try:
        parse_tss2_pem(pem(mutated))
    except CredentialError:
        return


@given(st.binary(max_size=400))
def test_random_text_raises_nothing_but_a_credential_error(content: bytes) -> None:
    with pytest.raises(CredentialError):
        parse_tss2_pem(b"-----BEGIN TSS2 PRIVATE KEY-----\n" + content + b"\n-----END TSS2 PRIVATE KEY-----\n")


def vectors() -> Iterator[Path]:
    if not VECTORS.is_dir():
        reason = "the folder ../shared/vectors/tsskeys with other tools' key files is absent"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    yield from sorted(VECTORS.iterdir())


EXPECTED = {  # algorithm, emptyAuth, policy, some attribute
    "gotpmkeyfiles-p256-authvalue.tpm": ("ecc-p256", True, True),
    "gotpmkeyfiles-rsa-key.tpm": ("rsa-2048", True, False),
    "gotpmkeyfiles-rsa-tpm-password.tpm": ("rsa-2048", False, False),
    "gotpmkeyfiles-skey.tpm": ("rsa-2048", False, True),
    "pytss-rsa-invalid-bool.pem": ("rsa-2048", True, False),
    "pytss-rsa.pem": ("rsa-2048", True, False),
}


def test_key_files_of_other_tools_are_read() -> None:
    found = {}
    for path in vectors():
        key = parse_tss2_pem(path.read_bytes(), path.name)
        found[path.name] = (key.public.algorithm, key.empty_auth, key.has_policy)
        assert key.parent == 0x40000001
    assert found == EXPECTED


def test_key_files_of_other_tools_cut_off_are_refused() -> None:
    for path in vectors():
        data = path.read_bytes()
        with pytest.raises(PemError):
            parse_tss2_pem(data[: len(data) // 2])


def test_the_sloppy_boolean_is_the_only_difference_between_two_files() -> None:
    files = {path.name: path.read_bytes() for path in vectors()}
    assert parse_tss2_pem(files["pytss-rsa.pem"]) == parse_tss2_pem(files["pytss-rsa-invalid-bool.pem"])
