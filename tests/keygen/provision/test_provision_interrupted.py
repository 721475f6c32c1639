"""``tpm-mtls provision`` that is killed, and two of them at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.power_cut import DIES_AT_FILE_CHANGE, TpmTap

if TYPE_CHECKING:
    from support.hardening import Hardening
    from support.tpm import SimulatedTpm


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("at", "command"),
    [
        (16, "0x129"),  # HierarchyChangeAuth: owner, endorsement, lockout
        (20, "0x129"),
        (22, "0x129"),
        (28, "0x13a"),  # DictionaryAttackParameters
        (29, "0x121"),  # HierarchyControl
    ],
)
def test_killed_at_a_change_of_the_tpm_it_finishes(
    tpm: SimulatedTpm, provision: Hardening, at: int, command: str, *, answered: bool
) -> None:
    with TpmTap(tpm.tcti) as tap:
        kill(provision, tap, at, answered=answered)
        assert tap.commands[-1] == command
    free(tpm)

    provision("apply")

    provision.assert_done()
    assert sorted(path.name for path in (provision.folder / "state").iterdir()) == [
        *("endorsement.sealed", "lockout", "owner.sealed"),
    ]


def unmeasured() -> dict[str, str]:
    """The environment of a program that coverage does not measure: who is killed writes none down."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def kill(provision: Hardening, tap: TpmTap, at: int, *options: str, answered: bool) -> None:
    """Runs the program, and kills it at its command number ``at``."""
    before, provision.tcti = provision.tcti, tap.tcti
    process = subprocess.Popen(
        [sys.executable, "-m", "tpm_mtls", *provision.command("apply", *options)],
        env=unmeasured(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    tap.kill(process, at=at, answered=answered)
    process.communicate(timeout=30)
    provision.tcti = before
    assert process.returncode == -signal.SIGKILL


def free(tpm: SimulatedTpm) -> None:
    """Without a resource manager nobody else frees what a killed program had loaded."""
    tpm.flush()
    for kind in ("--loaded-session", "--saved-session"):
        tpm.tool("tpm2_flushcontext", kind)


@pytest.mark.parametrize("at", range(4))
def test_killed_before_any_change_of_a_file_it_finishes(tpm: SimulatedTpm, provision: Hardening, at: int) -> None:
    """The folder, and each value as it takes its place."""
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(provision.folder), str(at), *provision.command("apply")]
    done = subprocess.run(command, check=False, capture_output=True, timeout=30, env=unmeasured())
    assert done.returncode == -signal.SIGKILL, done.stderr
    free(tpm)
    provision("apply")
    provision.assert_done()


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_killed_at_the_clear_it_finishes(tpm: SimulatedTpm, provision: Hardening, *, answered: bool) -> None:
    provision("apply")
    srk = provision.srk_name()
    options = ("--i-know-this-destroys-keys", srk)
    with TpmTap(tpm.tcti) as tap:
        kill(provision, tap, 23, *options, answered=answered)
    assert tap.commands[-1] == "0x126"  # Clear
    free(tpm)

    provision("apply", *options)

    assert provision.srk_name() != srk
    provision.assert_done()


def test_two_at_once_take_turns(provision: Hardening) -> None:
    """The second one waits for the first, sees what it did and changes nothing: no value is set twice."""
    command = [sys.executable, "-m", "tpm_mtls", *provision.command("apply"), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unmeasured()) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=30)[0]) for process in both]
    assert sorted(answer["changes"] for answer in answers) == [0, 7]
    provision.assert_done()


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [14, 16])  # HierarchyChangeAuth: the given value goes, the new one comes
def test_killed_while_a_given_lockout_authorization_is_changed_it_finishes(
    tpm: SimulatedTpm, provision: Hardening, at: int, *, answered: bool
) -> None:
    """No value that may be the wrong one is tried: that would block the hierarchy, as a rule for a day."""
    tpm.tool("tpm2_changeauth", "-c", "l", "before")
    provision.write('[lockout]\nauthorization = "file:state/lockout"\n')
    options = ("--lockout-auth", provision.secret("before", "before"))
    with TpmTap(tpm.tcti) as tap:
        kill(provision, tap, at, *options, answered=answered)
        assert tap.commands[-1] == "0x129"
    free(tpm)

    provision("apply", *options)

    assert set(provision("apply", *options).values()) == {None}
    kept = provision.folder / "state" / "lockout"
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout", "-p", f"file:{kept}")


def test_two_with_other_folders_take_turns_where_the_values_are_kept(provision: Hardening) -> None:
    """Else one would remove or overwrite the value that the other began, and the TPM has."""
    command = [sys.executable, "-m", "tpm_mtls", *provision.command("apply"), "--json"]
    folders = [str(provision.folder / name) for name in ("first", "second", "third")]
    some = [
        subprocess.Popen([*command, "--state-dir", each], stdout=subprocess.DEVNULL, env=unmeasured())
        for each in folders
    ]
    assert [process.wait(timeout=30) for process in some] == [0, 0, 0]
    provision.assert_done()
