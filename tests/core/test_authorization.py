"""Secrets come from a prompt, a private file or a systemd credential, and show up nowhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tpm_mtls.authorization import Secret, read_authorization, read_secret
from tpm_mtls.errors import PemError, StorageError, UsageError


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"correct horse\n")
    path.chmod(0o600)
    return path


def test_a_file_gives_its_line_without_the_newline(secret_file: Path) -> None:
    assert read_secret(f"file:{secret_file}", what="passphrase").value == b"correct horse"


def test_a_file_that_others_can_read_is_refused(secret_file: Path) -> None:
    secret_file.chmod(0o644)
    with pytest.raises(StorageError, match="can be read by other users"):
        read_secret(f"file:{secret_file}", what="passphrase")


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"nul\0inside", b"carriage\rreturn"])
def test_an_empty_or_many_lined_secret_is_refused(secret_file: Path, content: bytes) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(UsageError, match="the passphrase is empty, too long or has more than one line"):
        read_secret(f"file:{secret_file}", what="passphrase")


def test_an_oversized_file_is_refused(secret_file: Path) -> None:
    secret_file.write_bytes(b"x" * 1025)
    with pytest.raises(PemError, match="is larger than 1024 bytes"):
        read_secret(f"file:{secret_file}", what="passphrase")


def test_a_systemd_credential_is_found_by_its_name(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret_file.parent))
    secret_file.chmod(0o440)  # systemd's own mode; the folder is private
    assert read_secret("credential:secret", what="passphrase").value == b"correct horse"
    with pytest.raises(UsageError, match="no slash"):
        read_secret("credential:../secret", what="passphrase")


def test_without_systemd_a_credential_says_what_the_unit_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(UsageError, match="there is no systemd credential key") as caught:
        read_secret("credential:key", what="passphrase")
    assert "LoadCredential=key:" in caught.value.hint


@pytest.mark.parametrize("source", ["hunter2", "pass:hunter2", "prompt:hunter2", "file:", "credential:", "env:hunter2"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(source: str) -> None:
    with pytest.raises(UsageError, match="must be given as prompt, file:PATH or credential:NAME") as caught:
        read_secret(source, what="passphrase")
    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_a_prompt_without_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(UsageError, match="cannot ask for the passphrase: no terminal"):
            read_secret("prompt", what="passphrase")


def _at_a_terminal(*answers: bytes) -> str:
    """What a program says that asks for a new secret at a terminal; ``answers`` are typed at its prompts."""
    code = (
        "from tpm_mtls.authorization import read_secret; from tpm_mtls.errors import UsageError\n"
        "try: print(read_secret('prompt', what='passphrase', confirm=True).value.decode() == 'tr0ub4dor')\n"
        "except UsageError as error: print(error)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        shown = b""
        for answer in answers:
            while not shown.endswith(b": "):
                shown += os.read(ours, 1024)
            os.write(ours, answer + b"\n")
            shown = b""
        output, _ = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    return output.decode().strip()


def test_a_new_secret_is_asked_for_twice_at_a_terminal() -> None:
    assert _at_a_terminal(b"tr0ub4dor", b"tr0ub4dor") == "True"


def test_two_different_answers_are_refused() -> None:
    assert _at_a_terminal(b"tr0ub4dor", b"troubador") == "the two passphrases differ"


def test_a_secret_has_no_readable_form() -> None:
    assert "hunter2" not in repr(Secret(b"hunter2")) + str(Secret(b"hunter2"))


def test_an_authorization_value_fits_a_tpm(secret_file: Path) -> None:
    assert read_authorization(None) is None
    assert read_authorization(f"file:{secret_file}") == Secret(b"correct horse")
    secret_file.write_bytes(b"x" * 33)
    with pytest.raises(UsageError, match="longer than 32 bytes"):
        read_authorization(f"file:{secret_file}")
