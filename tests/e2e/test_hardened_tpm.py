"""Every command that uses a TPM works where the owner and the endorsement hierarchy have authorization values."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from support.agent_process import agent_process
from support.fleet import Device, fleet_ca, tpm_mtls
from support.hardening import ALL
from support.tpm import SimulatedTpm
from tpm_mtls.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWNER = ("--owner-auth", "sealed:state/owner.sealed")
ENDORSEMENT = ("--endorsement-auth", "sealed:state/endorsement.sealed")
STATE = ("--state-dir", "identity")
COUNTER = ("--counter", "0x01800100")
SIGNED = "2.signed-policy.json"

FIRST: list[tuple[str, ...]] = [
    ("tpm", "test", "sign", *STATE),
    ("tpm", "test", "quote", *STATE),
    ("tpm", "pcrs", *STATE),
    ("tpm", "save-info", "info.json", *STATE),
    ("keygen", "create", "--out", "first.pem", *STATE),
]
"""Where there is no storage root key: a primary key is made, or that one."""

TABLE: list[tuple[str, ...]] = [
    ("provision", "--plan", "hardening.toml", "--state-dir", "state"),
    ("keygen", "create", "--out", "a.pem", *OWNER, *STATE),
    ("keygen", "create", "--handle", "0x81000123", *OWNER, *STATE),
    ("keygen", "create", "--out", "p.pem", "--pcrs", "sha256:7", *OWNER, *STATE),
    ("keygen", "create", "--out", "s.pem", "--policy-signer", "operator.pub", *COUNTER, *OWNER, *STATE),
    ("policy", "sign", "--pcrs", "sha256:7", "--signer", "operator.key", *COUNTER, "--version", "2", "--out", SIGNED),
    ("policy", "install", SIGNED, "--key", "s.pem", *OWNER, *STATE),
    ("keygen", "csr", "--key", "a.pem", "--out", "a.csr", *OWNER, *STATE),
    ("keygen", "csr", "--key", "handle:0x81000123", "--out", "h.csr", *OWNER, *STATE),
    ("keygen", "import", "--in", "software.pem", "--out", "imported.pem", *OWNER),
    ("keygen", "show", "--ek", *ENDORSEMENT),
    ("keygen", "show", "--key", "handle:0x81000123", *STATE),
    ("keygen", "list", *STATE),
    ("keygen", "status", *STATE),
    ("keygen", "restore", *STATE),
    ("keygen", "remove", "--handle", "0x81000123", "--yes", *OWNER, *STATE),
    ("policy", "check", "--key", "p.pem", *STATE),
    ("policy", "record", "--pcrs", "sha256:7", "--out", "state.json"),
    ("pcr", "read"),
    ("seal", "--in", "secret", "--out", "sealed.pem", "--pcrs", "sha256:7", *OWNER, *STATE),
    ("unseal", "--in", "sealed.pem", "--out", "unsealed", *OWNER, *STATE),
    ("seal", "--in", "secret", "--nv", "0x01800001", *OWNER, *STATE),
    ("unseal", "--nv", "0x01800001", "--out", "read", *OWNER, *STATE),
    ("tpm", "info"),
    ("tpm", "capabilities"),
    ("tpm", "pcrs", *STATE),
    ("tpm", "test", "sign", *STATE),
    ("tpm", "test", "quote", *STATE),
    ("tpm", "test", "encrypt"),
    ("tpm", "test", "ecdh"),
    ("tpm", "test", "ecdh-aes"),
    ("agent", "check", "--run-dir", "run", *STATE),
]
"""In this order, on an enrolled device."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("device")
    (made / "hardening.toml").write_text(ALL)
    (made / "secret").write_text("correct horse")
    for name in ("software.pem", "operator.key"):
        subprocess.run(
            ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", name], cwd=made, check=True
        )
        (made / name).chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", "operator.key", "-pubout", "-out", "operator.pub"], cwd=made, check=True)
    return made


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Device]:
    """Hardened with nothing else done before, then enrolled with the evidence of its TPM."""
    tpm = SimulatedTpm(tmp_path_factory.mktemp("tpm"), ek_certificates=True)
    try:
        with fleet_ca(tmp_path_factory.mktemp("fleet") / "home") as ca, pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("TPM_MTLS_TCTI", tpm.tcti)
            made = Device(tpm, folder / "identity", ca)
            ca.trust_maker(tpm)
            assert run(["provision", "--apply", "hardening.toml", "--state-dir", "state"]) == 0
            enrolled = made.first_boot(*OWNER, *ENDORSEMENT)
            assert enrolled.returncode == 0, enrolled.stderr
            made.assert_enrolled()
            yield made
            tpm.assert_nothing_leaked()
    finally:
        tpm.stop()


@pytest.mark.parametrize("command", FIRST, ids=" ".join)
def test_without_a_storage_root_key(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    (tmp_path / "owner").write_text("right horse\n")
    (tmp_path / "owner").chmod(0o600)
    for hierarchy in ("owner", "endorsement"):
        tpm.tool("tpm2_changeauth", "-c", hierarchy, "right horse")

    assert run([*command, "--owner-auth", "file:owner"]) == 0


def test_a_hardened_device_talks(device: Device) -> None:
    done = device.get("/.well-known/est/cacerts")
    assert done.returncode == 0, done.stderr


def test_every_command_works(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    for command in TABLE:
        status = run([*command])
        assert status == 0, f"{' '.join(command)}: {capsys.readouterr().err}"
    assert device.folder.exists()


def test_a_key_is_rotated(device: Device) -> None:
    before = device.certificate()
    done = device.run("renew", "--rotate-key", *OWNER, *ENDORSEMENT)
    assert done.returncode == 0, done.stderr
    assert device.certificate() != before


def test_the_agent_keeps_secrets(device: Device, folder: Path) -> None:
    with agent_process(device.tpm, folder, *OWNER, *ENDORSEMENT) as agent:
        agent.client.set("stripe-api-key-prod", "sk_live_abc123xyz")
        assert agent.client.get("stripe-api-key-prod") == "sk_live_abc123xyz"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("keygen", "create", "--handle", "next", *STATE), "--owner-auth"),
        (("seal", "--in", "secret", "--nv", "0x01800003", *STATE), "--owner-auth"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_without_the_value_it_says_which_one(
    device: Device, command: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command]) == 4
    assert f"{option} prompt, file:F, credential:NAME or sealed:F" in capsys.readouterr().err
    assert device.folder.exists()


def test_a_sealed_value_is_no_use_on_another_tpm(device: Device, tpm: SimulatedTpm) -> None:
    done = tpm_mtls("keygen", "create", "--handle", "next", "--tcti", tpm.tcti, *OWNER)
    assert done.returncode == 10
    assert "storage root key is not" in done.stderr
    assert device.folder.exists()
