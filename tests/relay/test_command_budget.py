"""How many commands reach the TPM, counted below the relay by libtss2's own capture (its pcap transport).

The budgets: 1 for a full handshake, 0 for a resumed one, at most 3 from the start of a process to its ready context.
What counts is every command to the TPM from the start of the program on, whoever sends it. The first program after the
machine's start, or after a day, asks for more, once: what algorithms, commands and curve the TPM has, and whether the
key is persistent.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.resource_manager import running_resource_manager
from support.tls_program import tls_program
from support.tpm_keys import SRK, make_key
from tpm_mtls.relay import relay_tcti
from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls_program import TlsProgram
    from support.tpm import SimulatedTpm

HANDLE = 0x81000100
ALGORITHMS = ("ecc-p256", "rsa-2048")
VERSIONS = ("TLSv1_2", "TLSv1_3")


class Stage:
    """A device whose key ``name`` is in a file, and a server."""

    def __init__(self, tpm: SimulatedTpm, folder: Path, algorithm: str, *, persistent: bool) -> None:
        self.tpm = tpm
        self.folder = folder
        self._number = 0
        key = make_key(tpm, folder, algorithm)
        if persistent:
            blobs = ("-u", f"{algorithm}-0.pub", "-r", f"{algorithm}-0.priv")
            tpm.tool("tpm2_load", "-C", SRK, *blobs, "-c", "key.ctx", cwd=folder)
            tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", hex(HANDLE), cwd=folder)
            tpm.flush()
        ca = TestCa(folder)
        self.client = ca.identity(key.reference, key.public_key, "device")
        self.server = ca.software_identity("localhost")

    @contextmanager
    def program(self, version: str = "TLSv1_3", tcti: str | None = None) -> Iterator[TlsProgram]:
        """A new program, with a new capture."""
        self._number += 1
        tcti = tcti or relay_tcti(f"pcap:{self.tpm.tcti}")
        with tls_program(self.client, self.server, version, tcti, self.folder, self._tap) as program:
            yield program

    def commands(self) -> list[str]:
        """What the present, or the last, program had the TPM do."""
        return [f"{each.name}={each.response:#x}" if each.response else each.name for each in read_trace(self._tap)]

    @property
    def _tap(self) -> Path:
        return self.folder / f"tap-{self._number}.pcapng"


@pytest.mark.parametrize("persistent", [False, True], ids=["file", "also-persistent"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_three_commands_to_a_context_one_for_a_full_handshake_none_for_a_resumed_one(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: str, version: str, *, persistent: bool
) -> None:
    stage = Stage(tpm, tmp_path, algorithm, persistent=persistent)
    with stage.program(version):  # the first one learns
        assert len(stage.commands()) <= 8
    with stage.program(version) as program:
        start = ["GetCapability", "ReadPublic", "ReadPublic" if persistent else "Load"]
        assert stage.commands() == start
        program.handshake(5)
        assert stage.commands()[3:] == ["Sign"] * 5
        program.resume()
        assert stage.commands()[8:] == []
        program.handshake()
        assert stage.commands()[8:] == ["Sign"]
    assert stage.commands()[9:] == ([] if persistent else ["FlushContext"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_the_relay_it_takes_the_provider_more(tpm: SimulatedTpm, tmp_path: Path, algorithm: str) -> None:
    """The counts of FACTS hold, so the saving is the relay's; and the tap sees what there is to see."""
    stage = Stage(tpm, tmp_path, algorithm, persistent=False)
    with stage.program("TLSv1_2", f"pcap:{tpm.tcti}") as program:
        start = len(stage.commands())
        assert start == {"ecc-p256": 6, "rsa-2048": 8}[algorithm]
        program.handshake()
        assert len(stage.commands()) - start >= 6


def test_the_first_program_after_the_machines_start_asks_for_what_the_next_ones_know(
    tpm: SimulatedTpm, tmp_path: Path
) -> None:
    stage = Stage(tpm, tmp_path, "ecc-p256", persistent=True)
    with stage.program():
        asked = ["GetCapability"] * 3 + ["ReadPublic"]
        searched = ["GetCapability", "ReadPublic"]
        assert stage.commands() == [*asked, *searched, "ECC_Parameters"]


def test_a_second_context_of_the_same_program_costs_one_command(tpm: SimulatedTpm, tmp_path: Path) -> None:
    stage = Stage(tpm, tmp_path, "ecc-p256", persistent=True)
    with stage.program():
        pass
    with stage.program() as program:
        program.handshake()
        before = len(stage.commands())
        program.renew()
        assert stage.commands()[before:] == ["ReadPublic"]  # of the parent


CONTEXT_OF_A_HANDLE = """
import sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context
key, certificate, trust, tcti = sys.argv[1:]
client_context(Identity(key=parse_key_reference(key), certificate=Path(certificate), trust=Path(trust)), tcti=tcti)
"""


def test_a_persistent_key_by_its_handle_takes_two(tpm: SimulatedTpm, tmp_path: Path) -> None:
    stage = Stage(tpm, tmp_path, "ecc-p256", persistent=True)
    identity, tcti = stage.client, relay_tcti(f"pcap:{tpm.tcti}")
    counts: list[list[str]] = []
    for number in range(2):
        tap = tmp_path / f"handle-{number}.pcapng"
        environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "TCTI_PCAP_FILE": str(tap)}
        arguments = [f"handle:{HANDLE:#x}", str(identity.certificate), str(identity.trust), tcti]
        subprocess.run([sys.executable, "-c", CONTEXT_OF_A_HANDLE, *arguments], env=environment, check=True)
        counts.append([each.name for each in read_trace(tap)])
    assert counts[1] == ["GetCapability", "ReadPublic"]


@pytest.mark.parametrize("persistent", [True, False])
def test_behind_a_resource_manager_a_persistent_key_is_not_swapped(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, persistent: bool
) -> None:
    """Counted below the resource manager, where a transient key is loaded and saved around every command."""
    stage = Stage(tpm, tmp_path, "ecc-p256", persistent=persistent)
    tap = tmp_path / "below.pcapng"
    monkeypatch.setenv("TCTI_PCAP_FILE", str(tap))
    below = SimpleNamespace(tcti=f"pcap:{tpm.tcti}")
    with (
        running_resource_manager(below, tmp_path / "bus", monkeypatch) as tcti,  # type: ignore[arg-type]  # all it takes
        stage.program("TLSv1_3", relay_tcti(tcti)) as program,
    ):
        before = len(read_trace(tap))
        program.handshake(3)
        sent = [each.name for each in read_trace(tap)[before:]]
    each = ["Sign"] if persistent else ["ContextLoad", "Sign", "ContextSave", "FlushContext"]
    assert sent == (each * 3)[: len(sent)]
    assert len(sent) >= 3 * len(each) - 1  # the resource manager answers before it flushes
