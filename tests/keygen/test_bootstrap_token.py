"""Reading the bootstrap token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tpm_mtls.errors import PemError, StorageError, UsageError
from tpm_mtls_keygen.bootstrap_token import read_token

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize("content", [b"sensor-17:s3cret", b"sensor-17:s3cret\n", b"sensor-17:s3cret\r\n"])
def test_the_file_says_device_and_token(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    token = read_token(file, device=None)

    assert (token.device, token.secret.value) == ("sensor-17", b"s3cret")
    assert "s3cret" not in repr(token)
    assert read_token(file, device="sensor-17") == token


def test_a_token_alone_needs_the_device(file: Path) -> None:
    file.write_bytes(b"s3cret\n")

    assert read_token(file, device="sensor-17").device == "sensor-17"
    with pytest.raises(UsageError, match="does not say for which device") as refusal:
        read_token(file, device=None)
    assert "--device" in refusal.value.hint


def test_another_device_s_token_is_refused(file: Path) -> None:
    file.write_bytes(b"sensor-17:s3cret\n")

    with pytest.raises(UsageError, match="is for 'sensor-17', not for 'sensor-18'"):
        read_token(file, device="sensor-18")


@pytest.mark.parametrize("content", [b"", b"\n", b"sensor-17:", b"two words", b"a:b\nc:d\n", b"a:\xff", b"a:\x1b[31m"])
def test_what_is_no_token_is_refused_and_not_repeated(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    with pytest.raises(UsageError, match="holds no token") as refusal:
        read_token(file, device=None)

    assert str(file) in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("content", [b"Sensor-17:s3cret", b":s3cret", b"a_b:s3cret", b"x" * 65 + b":s3cret"])
def test_a_device_name_is_a_lower_case_host_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    with pytest.raises(UsageError, match="not a device name") as refusal:
        read_token(file, device=None)

    assert "s3cret" not in str(refusal.value)


def test_an_oversized_file_is_refused(file: Path) -> None:
    file.write_bytes(b"x" * 513)

    with pytest.raises(PemError, match="larger than 512 bytes"):
        read_token(file, device="sensor-17")


def test_a_file_that_others_can_read_is_refused(file: Path) -> None:
    file.write_bytes(b"sensor-17:s3cret\n")
    file.chmod(0o640)

    with pytest.raises(StorageError, match="can be read by other users"):
        read_token(file, device=None)
