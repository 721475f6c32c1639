"""One string names a key: a PEM file or a persistent handle, as ``openssl -key`` takes it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import KeyReferenceError, PemError, StorageError
from tpm_mtls.key_reference import KeyFile, PersistentHandle, parse_key_reference, pem_key_label

TSS2 = b"-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"
PKCS8 = b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


def test_a_handle_is_parsed_and_printed_as_openssl_takes_it() -> None:
    assert parse_key_reference("handle:0x81000100") == PersistentHandle(0x81000100)
    assert str(parse_key_reference("handle:81000100")) == "handle:0x81000100"


@pytest.mark.parametrize("text", ["handle:", "handle:0x8100010", "handle:0x81000100?pass", "handle:zz000100"])
def test_what_is_no_handle_is_refused(text: str) -> None:
    with pytest.raises(KeyReferenceError, match="not a handle"):
        parse_key_reference(text)


@pytest.mark.parametrize("handle", ["0x80FFFFFF", "0x81800000", "0x40000001"])
def test_a_handle_outside_the_owners_range_is_refused(handle: str) -> None:
    with pytest.raises(KeyReferenceError, match="is not a persistent handle of the owner"):
        parse_key_reference(f"handle:{handle}")


def test_everything_else_is_a_path() -> None:
    assert parse_key_reference("device.key.pem") == KeyFile(Path("device.key.pem"))
    assert parse_key_reference("file:/a/b") == KeyFile(Path("/a/b"))
    assert str(KeyFile(Path("/a/b"))) == "/a/b"


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(KeyReferenceError, match="empty"):
        parse_key_reference("")


def test_a_file_knows_whether_its_key_is_in_the_tpm(tmp_path: Path) -> None:
    (tmp_path / "tss2").write_bytes(CERTIFICATE + TSS2)
    (tmp_path / "software").write_bytes(PKCS8)
    assert KeyFile(tmp_path / "tss2").is_tss2()
    assert not KeyFile(tmp_path / "software").is_tss2()
    with pytest.raises(StorageError, match="no such file"):
        KeyFile(tmp_path / "absent").is_tss2()


def test_a_cut_off_key_is_told_from_a_file_without_one() -> None:
    with pytest.raises(PemError, match="key is cut off or damaged"):
        pem_key_label(TSS2[:50], "key")
    with pytest.raises(PemError, match="key is cut off or damaged"):
        pem_key_label(TSS2.replace(b"MAA=", b"M\x00A="), "key")
    with pytest.raises(PemError, match="key holds no private key"):
        pem_key_label(CERTIFICATE, "key")


@given(st.binary(max_size=200), st.integers(0, len(TSS2)))
def test_any_bytes_give_a_label_or_a_pem_error(data: bytes, at: int) -> None:
    with contextlib.suppress(PemError):
        pem_key_label(TSS2[:at] + data + TSS2[at:], "key")
