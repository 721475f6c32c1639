"""The how-to about hardening: its commands in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.how_to import FOLDER, HowTo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm


def test_harden_the_tpm(make_tpm: Callable[..., SimulatedTpm], tmp_path: Path) -> None:
    tpm, other = make_tpm(ek_certificates=True), make_tpm()
    how_to = HowTo("harden-the-tpm", tpm, tmp_path, {"/var/lib/tpm-mtls": "kept"})
    how_to.run_section("Say what you want")

    (planned,) = how_to.run_section("Look before you leap")
    assert planned.stdout.endswith("\n6 to change\n")  # the maker left both endorsement keys in this TPM
    assert list(tmp_path.glob("kept*")) == []
    (done,) = how_to.run_section("Do it")
    assert "\n6 changed\n" in done.stdout
    assert done.stdout.endswith("\nnothing to change\n")

    used, refused = how_to.run_section("Use it")
    assert used.stdout.startswith("handle:0x81000100\n")
    assert "0x9a2" in refused.stderr
    assert "--owner-auth" in refused.stderr
    unlock, taken = how_to.run_section("The lockout authorization")
    assert unlock.stderr == ""
    assert taken.stdout.endswith("\nnothing to change\n")
    assert (tmp_path / "lockout.of-this-device").stat().st_mode & 0o777 == 0o600

    (last,) = how_to.run_section("Give a device away")
    assert "clear it: every key in it" in last.stdout
    assert tpm.handles("persistent") == ["0x81000001", "0x81010001", "0x81010016"]
    assert "lockoutAuthSet:            0" in tpm.tool("tpm2_getcap", "properties-variable").stdout

    other.tool("tpm2_changeauth", "-c", "owner", "old horse")
    (tmp_path / "old-owner").write_text("old horse\n")
    (tmp_path / "old-owner").chmod(0o600)
    (tmp_path / "other.toml").write_text('[owner]\nauthorization = "sealed:other.sealed"\n')
    (changed,) = how_to.run_section("A TPM that somebody hardened before", TPM_MTLS_TCTI=other.tcti)
    assert "change it, and keep it in sealed:" in changed.stdout
    assert other.tool("tpm2_nvdefine", "0x1800001", "-C", "o", "-P", "old horse", check=False).returncode != 0


def test_the_fleet_is_hardened_by_files_that_are_there(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """tests/packaging runs them; here only that the text names them."""
    how_to = HowTo("harden-the-tpm", tpm, tmp_path)
    (block,) = how_to.blocks("A fleet", "console")
    root = FOLDER.parents[1]
    assert "cd packaging/ansible\n" in block
    assert (root / "packaging" / "ansible" / "harden.yml").is_file()
    assert (root / "packaging" / "systemd" / "tpm-mtls-provision.service").is_file()
