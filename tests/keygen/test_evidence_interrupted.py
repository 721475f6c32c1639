"""First boot on the TPM's evidence, killed anywhere and run again: one identity, one key, its mirror, and no human."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.power_cut import DIES_AT_FILE_CHANGE, TpmTap
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.nv_mirror import find_place, read_mirror

if TYPE_CHECKING:
    from support.attested import AttestedBench

OBSERVE = ["ReadPublic", "GetCapability", "GetCapability"]  # the storage root key, persistent handles, NV indices
KEYS = [
    *("CreatePrimary", "EvictControl", "FlushContext"),  # the storage root key
    *("CreateLoaded", "EvictControl", "FlushContext"),  # the device key
]
ENDORSEMENT = ["GetCapability", "ReadPublic", "CreatePrimary", "FlushContext"]  # no certificate: the key itself
ATTESTATION_KEY = ["CreateLoaded", "FlushContext"]
EVIDENCE = [
    *("ReadPublic", "Load", "ReadPublic", "CreatePrimary"),  # device, attestation and endorsement key
    *("StartAuthSession", "PolicySecret", "ActivateCredential", "FlushContext", "Certify", "FlushContext"),
]
RECORD = ["Sign", "GetCapability", "ReadClock"]
COPY = ["GetCapability", "GetCapability", "NV_DefineSpace", "NV_ReadPublic", "NV_Write", "NV_Write", "NV_Write"]
ALL = [*OBSERVE, *KEYS, *ENDORSEMENT, *ATTESTATION_KEY, *EVIDENCE, *RECORD, *COPY]
RESTORE = [
    *OBSERVE,
    *("NV_ReadPublic", "NV_Read", "NV_Read", "NV_Read", "ReadPublic", "ReadPublic", "ReadPublic", "ReadPublic"),
]


def first_boot(bench: AttestedBench, tap: TpmTap) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tpm_mtls", *bench.command("first-boot", "--tcti", tap.tcti)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(bench: AttestedBench) -> None:
    """Runs it again, to the end, and looks at everything."""
    bench.tpm.flush()  # without a resource manager nobody else frees what a killed program had loaded
    bench.tpm.tool("tpm2_flushcontext", "--loaded-session")
    record = bench.run().record
    bench.assert_whole()
    with open_tpm(bench.tpm.tcti) as tpm:
        assert find_place(tpm, bench.folder).mirror == read_mirror(bench.folder, record)


def test_the_commands_to_the_tpm_are_counted(attested: AttestedBench) -> None:
    """Evidence comes on top of keys and request; a certificate would save the first making of the endorsement key."""
    with TpmTap(attested.tpm.tcti) as tap:
        assert first_boot(attested, tap).wait(60) == 0
        first = tap.commands.copy()
        tap.commands.clear()
        assert first_boot(attested, tap).wait(60) == 0
        second = tap.commands.copy()
        attested.wipe()
        tap.commands.clear()
        assert first_boot(attested, tap).wait(60) == 0
        third = tap.commands.copy()

    assert first == ALL
    assert second == ["ReadPublic"]
    assert third == RESTORE


@pytest.mark.parametrize("at", range(1, len(ALL) + 1))
def test_killed_at_any_tpm_command_it_finishes(attested: AttestedBench, at: int) -> None:
    """Before the TPM got an odd one, after it answered an even one."""
    with TpmTap(attested.tpm.tcti) as tap:
        process = first_boot(attested, tap)
        tap.kill(process, at=at, answered=at % 2 == 0)
        process.wait(60)

    assert process.returncode == -signal.SIGKILL
    finish(attested)


@pytest.mark.parametrize("form", ["persistent", "tss2"])
@pytest.mark.parametrize("at", range(9))
def test_killed_before_any_change_of_a_file_it_finishes(attested: AttestedBench, form: str, at: int) -> None:
    """Folder, journal, key file (if it is one), attestation key and its certificate, anchor, certificate, identity."""
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(attested.folder), str(at)]
    subprocess.run([*command, *attested.command("first-boot", "--key", form)], check=False, capture_output=True)

    finish(attested)
    assert len(attested.issued()) in {2, 4}  # asked for again at most once


@pytest.mark.parametrize("at", range(6))
def test_killed_while_the_identity_comes_back_it_finishes(attested: AttestedBench, at: int) -> None:
    """Folder, install.json, attestation key, trust anchor, certificate, identity; without asking the CA."""
    attested.run()
    files = attested.files()
    attested.wipe()
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(attested.folder), str(at)]
    killed = subprocess.run([*command, *attested.command("first-boot")], check=False, capture_output=True)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    attested.run(ca_url="https://localhost:1")
    assert attested.files() == files


@pytest.mark.parametrize("at", range(4, 12))
def test_killed_while_an_identity_is_given_up_it_finishes(attested: AttestedBench, at: int) -> None:
    attested.run()
    attested.wipe()
    command = attested.command("first-boot", "--new-identity")
    with TpmTap(attested.tpm.tcti) as tap:
        process = subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *command, "--tcti", tap.tcti],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        tap.kill(process, at=at, answered=True)
        process.wait(60)
    attested.tpm.flush()

    again = subprocess.run([sys.executable, "-m", "tpm_mtls", *command], check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    finish(attested)


def test_a_certificate_in_nv_saves_making_the_endorsement_key_twice(certified: AttestedBench) -> None:
    """And one with userWithAuth, which is persistent besides, needs no policy session."""
    certified.trust_maker()
    with TpmTap(certified.tpm.tcti) as tap:
        assert first_boot(certified, tap).wait(60) == 0
        start = tap.commands.index("CreateLoaded", tap.commands.index("CreateLoaded") + 1)
        commands = tap.commands[start : tap.commands.index("Sign")]

    commands.remove("ActivateCredential")  # once more: the TPM notes that a key under lockout protection is used
    assert commands == [
        *("CreateLoaded", "FlushContext"),
        *("ReadPublic", "Load", "ReadPublic", "ActivateCredential", "Certify", "FlushContext"),
    ]
