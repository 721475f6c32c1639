"""``tpm-mtls server run`` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.backend import running_backend
from tpm_mtls.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from support.device_ca import DeviceCa


def arguments(ca: DeviceCa, folder: Path, *more: str) -> list[str]:
    server = ca.server()
    own = ["--cert", str(server.certificate), "--key", str(server.key), "--client-ca", str(ca.trust)]
    return ["server", "run", *own, "--database", f"sqlite:///{folder}/telemetry.db", *more]


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (["--listen", "8443"], 2, "expected HOST:PORT"),
        (["--listen", "127.0.0.1:65536"], 2, "expected HOST:PORT"),
        (["--listen", "::1:0"], 2, "expected HOST:PORT"),
        (["--listen", "192.0.2.1:0"], 2, "cannot listen on 192.0.2.1 port 0"),
        (["--database", "mysql"], 2, "that is no database URL"),
        (["--max-connections", "0"], 2, "max-connections"),
        (["--require-attestation", "/health"], 2, "attestation cannot be required for /health"),
        (["--attestation-lifetime", "1 day"], 2, "not a span of time"),
        (["--attestation-lifetime", "0h"], 2, "not a span of time"),
        (["--cert", "missing.pem"], 8, "cannot read missing.pem"),
        (["--key", "missing.pem"], 8, "cannot read missing.pem"),
        (["--key", "handle:0x1"], 5, "not a handle"),
        (["--client-ca", "missing.pem"], 8, "cannot read missing.pem"),
        (["--auth", "geheim"], 2, "must be given as prompt, file:PATH or credential:NAME"),
        (["--key", "handle:0x81000100", "--tcti", "nonsense"], 3, "not a TCTI string"),
        (["--key", "handle:0x81000100", "--tcti", "device:/dev/nothing"], 3, "there is no TPM at /dev/nothing"),
    ],
)
def test_a_bad_option_gets_an_error_and_a_hint(
    ca: DeviceCa, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, error: str
) -> None:
    assert run(arguments(ca, tmp_path, *options)) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"tpm-mtls: error: {error}" in printed.err or error in printed.err
    assert "tpm-mtls: hint: " in printed.err
    assert "geheim" not in printed.err
    assert not (tmp_path / "telemetry.db-wal").exists()


def test_json_gives_the_url_as_an_object(ca: DeviceCa, tmp_path: Path) -> None:
    with running_backend(tmp_path, ca.server(), "--json") as backend:
        assert list(json.loads(backend.printed)) == ["url"]
        assert backend.stop() == 0


def test_without_the_option_the_url_is_one_line(ca: DeviceCa, tmp_path: Path) -> None:
    with running_backend(tmp_path, ca.server()) as backend:
        assert backend.printed == f"https://127.0.0.1:{backend.port}"


def test_help_has_an_example_and_imports_little() -> None:
    program = (
        "import sys; from tpm_mtls.cli import run; run(['server', 'run', '--help'])\n"
        "print(*(m for m in ('aiohttp', 'sqlalchemy', 'cryptography', 'tpm2_pytss', 'rich') if m in sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    *text, loaded = told.splitlines()
    assert "Example: tpm-mtls server run" in " ".join(text)
    assert loaded == ""
