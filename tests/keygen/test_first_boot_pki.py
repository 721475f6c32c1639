"""First boot against this project's own CA: every program as a user starts it."""

from __future__ import annotations

import json
import secrets
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm


@dataclass(frozen=True)
class Ca:
    """A running ``tpm-mtls pki serve``."""

    folder: Path
    url: str

    def pki(self, *words: str) -> str:
        return subprocess.run(
            ["tpm-mtls", "pki", *words, "--ca-dir", str(self.folder)], check=True, capture_output=True, text=True
        ).stdout

    def token(self, device: str, out: Path) -> Path:
        self.pki("token", "create", "--device", device, "--out", str(out))
        return out


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    folder = tmp_path_factory.mktemp("pki") / "ca"
    secret = folder.with_name("passphrase")
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    Ca(folder, "").pki("init", "--name", "Test", "--passphrase", f"file:{secret}")
    command = ["tpm-mtls", "pki", "serve", "--ca-dir", str(folder), "--passphrase", f"file:{secret}"]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield Ca(folder, server.stdout.readline().strip())
        finally:
            server.terminate()


def first_boot(ca: Ca, tpm: SimulatedTpm, state_dir: Path, token: Path, *options: str) -> list[str]:
    enrollment = ["--ca", ca.url, "--token-file", str(token), "--trust", str(ca.folder / "root.pem")]
    return ["keygen", "first-boot", *enrollment, "--state-dir", str(state_dir), "--tcti", tpm.tcti, *options]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--key", "tss2"],
        ["--algorithm", "ecc-p384", "--handle", "0x81000150"],
        ["--algorithm", "rsa-2048", "--key", "tss2"],
    ],
)
def test_a_device_enrolls_and_the_ca_knows_it(
    ca: Ca, tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, options: list[str]
) -> None:
    device = f"device-{secrets.token_hex(4)}"
    token = ca.token(device, tmp_path / "token")

    assert run(first_boot(ca, tpm, state_dir, token, *options)) == 0
    assert run(first_boot(ca, tpm, state_dir, token, *options)) == 0

    record = json.loads((state_dir / "identity.json").read_text())
    assert record["device"] == device
    shown = json.loads(ca.pki("show", "--device", device, "--json"))
    leaf = subprocess.run(
        ["openssl", "x509", "-in", state_dir / "device.cert.pem", "-noout", "-serial"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert shown["serial"].lower().lstrip("0") == leaf.strip().removeprefix("serial=").lower().lstrip("0")
    subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", ca.folder / "root.pem"),
            *("-untrusted", state_dir / "device.cert.pem", state_dir / "device.cert.pem"),
        ],
        check=True,
        capture_output=True,
    )


def test_a_token_is_good_for_one_key_only(
    ca: Ca, tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = ca.token("once", tmp_path / "token")
    assert run(first_boot(ca, tpm, tmp_path / "one", token)) == 0

    assert run(first_boot(ca, tpm, tmp_path / "two", token)) == 7

    assert "refused the bootstrap token (401)" in capsys.readouterr().err
    assert not (tmp_path / "two" / "identity.json").exists()


def test_a_wrong_token_is_refused_and_the_right_one_finishes(
    ca: Ca, tpm: SimulatedTpm, state_dir: Path, tmp_path: Path
) -> None:
    token = ca.token("typo", tmp_path / "token")
    wrong = tmp_path / "wrong"
    wrong.write_text("typo:AAAA\n")
    wrong.chmod(0o600)

    assert run(first_boot(ca, tpm, state_dir, wrong)) == 7
    assert run(first_boot(ca, tpm, state_dir, token)) == 0

    assert tpm.handles("persistent") == ["0x81000001", "0x81000100"]


def test_the_certificate_lost_before_it_was_stored_is_the_same_one_again(
    ca: Ca, tpm: SimulatedTpm, state_dir: Path, tmp_path: Path
) -> None:
    """The CA answers the same token and key again: what a power cut between its answer and the disk needs."""
    token = ca.token("again", tmp_path / "token")
    assert run(first_boot(ca, tpm, state_dir, token)) == 0
    record = json.loads((state_dir / "identity.json").read_text())
    certificate = (state_dir / "device.cert.pem").read_bytes()
    begun = {name: record[name] for name in ("key", "algorithm", "key_name", "srk_name")}
    for file in state_dir.iterdir():
        file.unlink()
    (state_dir / "first-boot.json").write_text(json.dumps({"format": 1, **begun}))

    assert run(first_boot(ca, tpm, state_dir, token)) == 0

    assert (state_dir / "device.cert.pem").read_bytes() == certificate


def test_an_identity_outside_the_folder_is_untouched_by_a_ca_of_another_root(
    ca: Ca, tpm: SimulatedTpm, state_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Ca(tmp_path / "other", "")
    secret = ca.folder.with_name("passphrase")
    other.pki("init", "--name", "Other", "--passphrase", f"file:{secret}")
    token = ca.token("elsewhere", tmp_path / "token")

    code = run(first_boot(ca, tpm, state_dir, token, "--trust", str(other.folder / "root.pem")))

    assert code == 6
    assert "is not trusted" in capsys.readouterr().err
    assert list(state_dir.iterdir()) == []
