"""Other commands as the agent's children: their answers, their complaints, their end."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.errors import TpmMtlsError, UsageError
from tpm_mtls_agent.duties import commands

if TYPE_CHECKING:
    from pathlib import Path

_COMPLAINS = "printf 'progress\\ntpm-mtls: error: no TPM\\ntpm-mtls: hint: look\\n' >&2; exit 3"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the Python interpreter; a shell script."""
    path = tmp_path / "python"
    path.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def test_the_real_command_s_error_is_the_agent_s(tmp_path: Path) -> None:
    with pytest.raises(TpmMtlsError, match="tpm-mtls keygen renew failed: there is no identity in") as failure:
        asyncio.run(commands.keygen("renew", ["--if-due", "--state-dir", str(tmp_path / "none")]))
    assert "keygen first-boot" in failure.value.hint


def test_what_changed_is_in_the_answer(program: Path) -> None:
    program.write_text(f'#!/bin/sh\necho "$@" > {program}.words\necho \'{{"changed": true, "device": "d"}}\'\n')
    assert asyncio.run(commands.keygen("renew", ["--if-due"])).changed
    assert program.with_suffix(".words").read_text() == "-P -m tpm_mtls keygen renew --if-due --json\n"

    program.write_text("#!/bin/sh\necho nonsense\n")
    with pytest.raises(TpmMtlsError, match="gave no usable answer"):
        asyncio.run(commands.keygen("renew", []))


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        (
            "echo progress >&2; echo 'tpm-mtls: error: no TPM' >&2; echo 'tpm-mtls: hint: look' >&2; exit 3",
            "no TPM",
            "look",
        ),
        ("exit 7", "it ended with status 7", "by hand"),
        ("echo oops >&2; exit 1", "it ended with status 1: oops", "by hand"),
        ("kill -9 $$", "it ended with status -9", "by hand"),
    ],
)
def test_a_failure_is_told_by_its_last_words(program: Path, script: str, message: str, hint: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(TpmMtlsError, match=f"keygen restore failed: {message}\n") as failure:
        asyncio.run(commands.keygen("restore", []))
    assert hint in failure.value.hint


def test_a_command_that_hangs_is_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_TIME", 0.2)
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(TpmMtlsError, match=r"was ended after 0\.2 seconds"):
        asyncio.run(commands.keygen("renew", []))


def test_what_follows_a_renewal_gets_the_folder_and_no_shell(tmp_path: Path) -> None:
    words = commands.split_command('sh -c \'echo "$TPM_MTLS_STATE_DIR" "$1" > "$0"\' ' + f"{tmp_path}/out '$(id)'")
    asyncio.run(commands.after_renewal(words, tmp_path))
    assert (tmp_path / "out").read_text() == f"{tmp_path} $(id)\n"

    with pytest.raises(TpmMtlsError, match="the command 'false' of --on-renewal failed: it ended with status 1"):
        asyncio.run(commands.after_renewal(["false"], tmp_path))
    missing = str(tmp_path / "missing")
    with pytest.raises(TpmMtlsError, match=f"cannot run '{re.escape(missing)}': no such file or directory"):
        asyncio.run(commands.after_renewal([missing], tmp_path))


@pytest.mark.parametrize("text", ["", "  ", "a 'b"])
def test_half_a_command_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="command"):
        commands.split_command(text)
