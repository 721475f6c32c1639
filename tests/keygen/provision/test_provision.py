"""``tpm-mtls provision``: what it changes, that it does so once, and what it refuses."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import pytest

from support.hardening import ALL, LOCKOUT, OWNER, Hardening
from support.power_cut import TpmTap
from tpm_mtls.cli import run
from tpm_mtls_keygen.provision.apply import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

OWNER_ONLY = '[owner]\nauthorization = "file:state/owner"\n'
LOCKOUT_ONLY = '[lockout]\nauthorization = "file:state/lockout"\n'


def accepted(tpm: SimulatedTpm, value: str) -> bool:
    """Whether the owner hierarchy has ``value``, as tpm2-tools try it."""
    if tpm.tool("tpm2_nvdefine", "0x1800009", "-C", "o", "-s", "8", "-P", value, check=False).returncode:
        return False
    tpm.tool("tpm2_nvundefine", "0x1800009", "-C", "o", "-P", value)
    return True


def test_it_does_what_the_plan_says_and_then_nothing(tpm: SimulatedTpm, provision: Hardening) -> None:
    planned = provision("plan")
    assert None not in planned.values()
    assert tpm.handles("persistent") == []
    assert not (provision.folder / "state").exists()

    assert provision("apply") == planned

    provision.assert_done()
    shown = tpm.tool("tpm2_getcap", "properties-variable").stdout
    for line in (
        *("ownerAuthSet:              1", "endorsementAuthSet:        1", "lockoutAuthSet:            1"),
        *("phEnable:                  0", "phEnableNV:                1"),
        *("MAX_AUTH_FAIL: 0xA", "LOCKOUT_INTERVAL: 0x1C20", "LOCKOUT_RECOVERY: 0x15180"),
    ):
        assert line in shown
    assert tpm.handles("persistent") == ["0x81000001", "0x81010002"]
    files = {path.name: path.stat().st_mode & 0o777 for path in (provision.folder / "state").iterdir()}
    assert files == {"owner.sealed": 0o600, "endorsement.sealed": 0o600, "lockout": 0o600}
    lockout = (provision.folder / "state" / "lockout").read_text()
    assert re.fullmatch("[0-9a-f]{32}", lockout)  # 128 bits, and no newline, which tpm2-tools' file: would take, too
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout", "-p", lockout)


def test_the_platform_is_disabled_again_after_a_restart(tpm: SimulatedTpm, provision: Hardening) -> None:
    provision("apply")
    tpm.restart()
    changes = provision("apply")
    assert [name for name, change in changes.items() if change] == ["platform hierarchy"]


def test_a_persons_answer_is_a_table(provision: Hardening, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(provision.command("apply")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "storage root key\tnone\tmake it at 0x81000001"
    assert shown[-1] == "7 changed"
    assert run(provision.command("plan")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == ["platform hierarchy\tdisabled\t-", "nothing to change"]


def test_a_value_that_lies_there_already_is_the_one(tpm: SimulatedTpm, provision: Hardening) -> None:
    """And root leaves it to the user whose folder it is, as whom services run."""
    (provision.folder / "state").mkdir()
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(provision.folder / "state", owner, -1)
    provision.secret("state/owner", "own choice")
    provision.write(OWNER_ONLY)
    provision("apply")
    assert accepted(tpm, "own choice")
    assert (provision.folder / "state" / "owner").stat().st_uid == owner
    provision.assert_done()


@pytest.mark.parametrize("kind", ["file", "sealed"])
def test_a_value_that_somebody_set_is_changed(tpm: SimulatedTpm, provision: Hardening, kind: str) -> None:
    tpm.tool("tpm2_changeauth", "-c", "o", "before")
    provision.write(OWNER_ONLY.replace("file", kind))
    provision("plan", status=4)
    assert "the owner hierarchy has an authorization value" in provision.errors
    provision("apply", "--owner-auth", provision.secret("wrong", "wrong"), status=4)
    assert tpm.handles("persistent") == []

    before = provision.secret("before", "before")
    assert provision("apply", "--owner-auth", before)[OWNER]

    assert not accepted(tpm, "before")
    assert set(provision("apply", "--owner-auth", before).values()) == {None}
    provision.assert_done()


def test_a_value_that_somebody_set_is_changed_to_the_one_that_lies_there(
    tpm: SimulatedTpm, provision: Hardening
) -> None:
    tpm.tool("tpm2_changeauth", "-c", "o", "before")
    (provision.folder / "state").mkdir()
    provision.secret("state/owner", "own choice")
    provision.write(OWNER_ONLY)
    provision("apply", "--owner-auth", provision.secret("before", "before"))
    assert accepted(tpm, "own choice")


def test_a_lockout_authorization_that_is_kept_counts_before_one_that_was_begun(
    tpm: SimulatedTpm, provision: Hardening
) -> None:
    """A wrong one that is tried would block the right one."""
    tpm.tool("tpm2_changeauth", "-c", "l", "kept")
    (provision.folder / "state").mkdir()
    provision.secret("state/lockout", "kept")
    provision.secret("state/lockout.new", "begun")
    provision.write(LOCKOUT_ONLY)
    assert set(provision("apply").values()) <= {None, "make it at 0x81000001"}
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout", "-p", "kept")


def test_a_lockout_authorization_that_somebody_set_is_changed(tpm: SimulatedTpm, provision: Hardening) -> None:
    tpm.tool("tpm2_changeauth", "-c", "l", "before")
    provision.write(LOCKOUT_ONLY + "max_tries = 7\n")
    provision("plan", status=4)

    before = provision.secret("before", "before")
    provision("apply", "--lockout-auth", before)

    # the old value is not tried: it would lock the TPM
    assert set(provision("apply", "--lockout-auth", before).values()) == {None}
    assert "inLockout:                 0" in tpm.tool("tpm2_getcap", "properties-variable").stdout


def test_a_wrong_lockout_authorization_is_tried_once(tpm: SimulatedTpm, provision: Hardening) -> None:
    tpm.tool("tpm2_changeauth", "-c", "l", "before")
    provision.write(LOCKOUT_ONLY)
    provision("apply", "--lockout-auth", provision.secret("wrong", "wrong"), status=4)
    assert "change the lockout authorization" in provision.errors
    assert "blocks it for LOCKOUT_RECOVERY seconds" in provision.errors
    assert list((provision.folder / "state").iterdir()) == []  # what was begun is not what the TPM has

    provision("apply", "--lockout-auth", provision.secret("before", "before"), status=4)
    assert "a wrong lockout authorization was tried, which blocks that one (TPM_RC_LOCKOUT" in provision.errors
    assert "--clear-lockout" not in provision.errors  # it would need that value, too


def test_a_begun_lockout_authorization_is_tried_before_it_counts(tpm: SimulatedTpm, provision: Hardening) -> None:
    tpm.tool("tpm2_changeauth", "-c", "l", "new one")
    (provision.folder / "state").mkdir()
    provision.secret("state/lockout.new", "new one")
    provision.write(LOCKOUT_ONLY)
    assert provision("apply")[LOCKOUT] == f"finish what was begun: keep it in file:{provision.folder}/state/lockout"
    provision.assert_done()

    tpm.tool("tpm2_changeauth", "-c", "l", "-p", "new one", "else")
    (provision.folder / "state" / "lockout").rename(provision.folder / "state" / "lockout.new")
    provision("apply", status=4)
    assert "use the lockout hierarchy" in provision.errors
    assert list((provision.folder / "state").iterdir()) == []


def test_a_begun_lockout_authorization_outlives_that_it_is_blocked(tpm: SimulatedTpm, provision: Hardening) -> None:
    """Somebody tried a wrong one meanwhile: the TPM does not say whether it has this one, which nobody else knows."""
    tpm.tool("tpm2_changeauth", "-c", "l", "new one")
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout", "-p", "wrong", check=False)
    (provision.folder / "state").mkdir()
    provision.secret("state/lockout.new", "new one")
    provision.write(LOCKOUT_ONLY)
    provision("apply", status=4)
    assert "a wrong lockout authorization was tried" in provision.errors
    assert (provision.folder / "state" / "lockout.new").read_text() == "new one\n"


@pytest.mark.parametrize("place", ["state", "value"])
def test_what_cannot_be_looked_for_is_told(provision: Hardening, place: str) -> None:
    """As in a folder that this user may not look into."""
    provision.write(OWNER_ONLY.replace("state/owner", "o" * 300 if place == "value" else "owner"))
    folder = ["--state-dir", str(provision.folder / ("s" * 300))] if place == "state" else []
    provision("plan", *folder, status=8)
    assert "error: cannot read" in provision.errors
    assert "file name too long" in provision.errors


def test_endorsement_keys_with_certificates_are_kept(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tpm = make_tpm(ek_certificates=True)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81010016")
    before = tpm.tool("tpm2_readpublic", "-c", "0x81010001").stdout
    provision = Hardening(tpm, tmp_path, capsys)
    provision.write('[endorsement]\nkeys = "certified"\nauthorization = "sealed:state/endorsement"\n')

    changes = provision("apply")

    assert changes["endorsement key L-1 (rsa-2048)"] is None
    assert changes["endorsement key H-3 (ecc-p384)"] == "keep it in the TPM"
    assert tpm.tool("tpm2_readpublic", "-c", "0x81010001").stdout == before
    provision.assert_done()


def test_a_platform_authorization_of_the_firmware_is_left(tpm: SimulatedTpm, provision: Hardening) -> None:
    tpm.tool("tpm2_changeauth", "-c", "p", "firmware")
    provision.write("[platform]\ndisable = true\n")
    assert provision("apply")["platform hierarchy"] is None
    tpm.tool("tpm2_clear", "-c", "p", "firmware")


def test_what_another_tpm_sealed_is_not_overwritten(
    make_tpm: Callable[..., SimulatedTpm], provision: Hardening, capsys: pytest.CaptureFixture[str]
) -> None:
    provision("apply")
    before = (provision.folder / "state" / "owner.sealed").read_bytes()
    other = Hardening(make_tpm(), provision.folder, capsys)
    other("apply", status=10)
    assert "storage root key is not" in other.errors
    assert f"if this TPM was cleared, remove {provision.folder}/state/owner.sealed" in other.errors
    assert (provision.folder / "state" / "owner.sealed").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "say what to do"),
        (("--plan", "a", "--apply", "b"), "say what to do"),
        (("--plan", "none.toml"), "no such file"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["provision", *arguments]) in {2, 8}
    assert error in capsys.readouterr().err


def test_it_clears_only_the_tpm_that_is_named(tpm: SimulatedTpm, provision: Hardening) -> None:
    name = "--i-know-this-destroys-keys"
    provision("apply", name, "000b" + 32 * "00", status=10)
    assert "no storage root key that could be destroyed" in provision.errors
    provision("apply")
    srk = provision.srk_name()
    old = (provision.folder / "state" / "lockout").read_text()
    provision("apply", name, "000b" + 32 * "00", status=10)
    assert f"storage root key is {srk}, not" in provision.errors
    provision("apply", name, "yes", status=2)
    provision.write("")  # who does not say where the lockout authorization is
    provision("apply", name, srk, status=4)
    assert "lockout hierarchy has an authorization value, and none is kept or given" in provision.errors
    provision.write(ALL)  # it was not tried without: that would block it
    assert provision("plan", name, srk)["the whole TPM"]
    assert provision.srk_name() == srk

    assert provision("apply", name, srk)["the whole TPM"]

    assert provision.srk_name() != srk
    assert (provision.folder / "state" / "lockout").read_text() == old  # a value in a file stays the device's
    provision.assert_done()
    provision("apply", name, srk, status=10)
    assert not (provision.folder / "state" / JOURNAL).exists()
    assert tpm.handles("persistent") == ["0x81000001", "0x81010002"]

    provision.secret("state/lockout", "wrong")
    provision("apply", name, provision.srk_name(), status=4)
    assert "cannot clear the TPM: wrong authorization value" in provision.errors
    assert not (provision.folder / "state" / JOURNAL).exists()


def test_a_damaged_journal_is_named(provision: Hardening) -> None:
    (provision.folder / "state").mkdir()
    (provision.folder / "state" / JOURNAL).write_text("no name")
    provision("plan", status=10)
    assert f"{JOURNAL} is damaged" in provision.errors


def test_somebody_who_changes_it_back_is_noticed(
    tpm: SimulatedTpm, provision: Hardening, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpm_mtls_keygen.provision.apply import Provisioning

    perform = Provisioning._perform

    def and_back(self: Provisioning, action: object) -> None:
        perform(self, action)  # type: ignore[arg-type]  # one of the actions
        if (provision.folder / "state" / "owner").exists():
            value = (provision.folder / "state" / "owner").read_text().strip()
            tpm.tool("tpm2_changeauth", "-c", "o", "-p", value)

    monkeypatch.setattr(Provisioning, "_perform", and_back)
    provision.write(OWNER_ONLY)
    provision("apply", status=10)
    assert "owner authorization is not as it was set: none" in provision.errors


def test_a_second_run_costs_few_commands(tpm: SimulatedTpm, provision: Hardening) -> None:
    """Five to look; four to unseal each of two values, four to show it to the TPM."""
    with TpmTap(tpm.tcti) as tap:
        provision.tcti = tap.tcti
        provision("apply")
        tap.commands.clear()
        provision("apply")
        provision.tcti = tpm.tcti

    assert len(tap.commands) == 21


def test_a_kept_lockout_authorization_that_is_wrong_is_named(tpm: SimulatedTpm, provision: Hardening) -> None:
    """To give another one does not help as long as it lies there; moved away, the given one counts."""
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=3", "--lockout-recovery-time=1")
    tpm.tool("tpm2_changeauth", "-c", "l", "before")
    (provision.folder / "state").mkdir()
    kept = provision.folder / "state" / "lockout"
    provision.secret("state/lockout", "wrong")
    provision.write(LOCKOUT_ONLY + "max_tries = 7\n")
    before = provision.secret("before", "before")
    provision("apply", "--lockout-auth", before, status=4)
    assert f"{kept} holds another value: move it away" in provision.errors

    kept.unlink()
    time.sleep(1.5)  # lockout_recovery
    provision("apply", "--lockout-auth", before)
    assert set(provision("apply").values()) == {None}


@pytest.mark.parametrize("other", ["../{}/value", "link/value"])
def test_two_values_in_one_file_by_another_path_are_refused(
    tpm: SimulatedTpm, provision: Hardening, other: str
) -> None:
    """The second one would overwrite the first, which nobody else knows."""
    (provision.folder / "link").symlink_to(provision.folder)
    other = other.format(provision.folder.name)
    provision.write(f'[owner]\nauthorization = "file:value"\n[endorsement]\nauthorization = "file:{other}"\n')
    provision("apply", status=2)
    assert "keeps two authorization values in one file" in provision.errors
    assert "ownerAuthSet:              0" in tpm.tool("tpm2_getcap", "properties-variable").stdout


@pytest.mark.parametrize("path", ["/", ".", "..", "a/..", "a/"])
def test_a_value_is_kept_in_a_file_and_no_folder(provision: Hardening, path: str) -> None:
    """A folder's rights are not to be taken away, either: "chmod 600 .." would do harm."""
    provision.write(f'[owner]\nauthorization = "file:{path}"\n')
    provision("apply", status=2)
    assert "neither sealed nor in a file" in provision.errors
