"""What a killed process leaves in a TPM without resource manager, the next process flushes, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.tpm_commands import DirectTpm, handle_in, sized
from support.tpm_proxy import TpmProxy
from tpm_mtls.errors import StorageError, TpmRefusedError, TpmUnavailableError
from tpm_mtls.tcti import is_raw
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.ledger import Ledger, Loaded
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import simple_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.tpm import SimulatedTpm

HMAC, POLICY = 0, 1
CREATE_PRIMARY, UNSEAL, EVICT_CONTROL, POLICY_PCR = 0x131, 0x15E, 0x120, 0x17F
FOREIGN = "0001000b"  # how the public area of an RSA key begins

# ``python -c UNSEALS TCTI LEDGER PUBLIC PRIVATE``
UNSEALS = """
import sys
from contextlib import closing
from pathlib import Path
from tpm_mtls.structures import read_sealed_files
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.ledger import Ledger
tcti, path, *files = sys.argv[1:]
with closing(Ledger(Path(path))) as ledger, open_tpm(tcti, ledger=ledger) as tpm:
    tpm.srk.ensure()
    if files:
        tpm.sealing.unseal(read_sealed_files(*(Path(file).read_bytes() for file in files)))
"""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path)) as ledger:
        yield ledger


def start_session(tpm: SimulatedTpm, kind: int) -> int:
    """A session that nobody ends."""
    parameters = struct.pack(">H16sHBHH", 16, bytes(16), 0, kind, 0x10, 0xB)
    handles = (0x40000007, 0x40000007)
    return handle_in(DirectTpm(tpm)(simple_command(commands.START_AUTH_SESSION, parameters, handles=handles)))


def satisfy_something(tpm: SimulatedTpm, session: int) -> None:
    """TPM2_PolicyPCR: the session is not fresh any more."""
    selection = struct.pack(">HIHB3s", 0, 1, 0xB, 3, b"\1\0\0")
    DirectTpm(tpm)(simple_command(POLICY_PCR, selection, handles=(session,)))


def left_by(tpm: SimulatedTpm, path: Path, what: Sequence[Loaded]) -> list[str]:
    """What is still loaded, after a process that comes after one that was killed and had written ``what``."""
    with opened(path) as ledger:
        for each in what:
            ledger.expect(each)
            if each.handle:
                ledger.loaded(each.handle)
    with opened(path) as ledger, open_tpm(tpm.tcti, ledger=ledger):
        assert ledger.left == ()
    return tpm.handles("loaded-session") + tpm.handles("transient")


def flush(tpm: SimulatedTpm, *handles: int) -> None:
    for handle in handles:
        DirectTpm(tpm)(simple_command(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big")))


@pytest.mark.parametrize("command", [commands.START_AUTH_SESSION, commands.LOAD, UNSEAL, commands.FLUSH_CONTEXT])
def test_a_process_that_is_killed_leaves_nothing_for_longer_than_until_the_next(
    tpm: SimulatedTpm, tmp_path: Path, command: int
) -> None:
    """At each of its commands: the TPM has done it, and the process never hears of it."""
    files = tmp_path / "sealed.pub", tmp_path / "sealed.priv"
    with open_tpm(tpm.tcti) as own:
        sealed = own.sealing.seal(b"data")
    for file, content in zip(files, (sealed.public.data, sealed.private), strict=True):
        file.write_bytes(sized(content))
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, signal.SIGKILL)
    arguments = [proxy.tcti, str(tmp_path / "ledger"), *map(str, files)]
    killed = subprocess.run([sys.executable, "-c", UNSEALS, *arguments], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if command != commands.FLUSH_CONTEXT:
        assert tpm.handles("transient") + tpm.handles("loaded-session") != []
    assert left_by(tpm, tmp_path / "ledger", []) == []


@pytest.mark.parametrize("command", [CREATE_PRIMARY, EVICT_CONTROL])
def test_a_storage_root_key_that_a_killed_process_made_is_found_though_it_never_saw_it(
    tpm: SimulatedTpm, tmp_path: Path, command: int
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, signal.SIGKILL)
    arguments = [proxy.tcti, str(tmp_path / "ledger")]
    subprocess.run([sys.executable, "-c", UNSEALS, *arguments], check=False, timeout=60)
    assert tpm.handles("transient") != []
    assert left_by(tpm, tmp_path / "ledger", []) == []


def test_a_process_that_ends_has_nothing_written_down(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with opened(tmp_path / "ledger") as ledger, open_tpm(tpm.tcti, ledger=ledger) as own:
        sealed = own.sealing.seal(b"data")
        assert own.sealing.unseal(sealed) == b"data"
        assert ledger.left == ()
    with opened(tmp_path / "ledger") as ledger:
        assert ledger.left == ()


@pytest.mark.parametrize("kind", [HMAC, POLICY])
def test_a_session_whose_handle_was_known_is_flushed_and_no_other(tpm: SimulatedTpm, tmp_path: Path, kind: int) -> None:
    name = ("hmac", "policy")[kind]
    ours, others = start_session(tpm, kind), start_session(tpm, kind)
    assert left_by(tpm, tmp_path / "ledger", [Loaded(name, ours)]) == [f"{others:#x}"]  # type: ignore[arg-type] - one of its two
    flush(tpm, others)


def test_a_session_that_is_gone_already_is_no_error(tpm: SimulatedTpm, tmp_path: Path) -> None:
    assert left_by(tpm, tmp_path / "ledger", [Loaded("hmac", 0x02000000), Loaded("policy", 0x03000001)]) == []


def test_a_session_whose_handle_was_not_known_is_flushed_if_it_is_the_only_one(
    tpm: SimulatedTpm, tmp_path: Path
) -> None:
    used = start_session(tpm, POLICY)
    satisfy_something(tpm, used)
    start_session(tpm, POLICY)
    assert left_by(tpm, tmp_path / "ledger", [Loaded("policy")]) == [f"{used:#x}"]
    start_session(tpm, HMAC)
    assert left_by(tpm, tmp_path / "ledger", [Loaded("hmac")]) == [f"{used:#x}"]
    flush(tpm, used)


def test_one_of_two_that_it_can_be_is_left_alone(tpm: SimulatedTpm, tmp_path: Path) -> None:
    two = [start_session(tpm, HMAC) for _ in range(2)]
    assert left_by(tpm, tmp_path / "ledger", [Loaded("hmac")]) == [f"{each:#x}" for each in two]
    flush(tpm, *two)


def test_somebody_elses_object_at_the_same_handle_is_left_alone(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", str(tmp_path / "primary.ctx"))
    handle = int(tpm.handles("transient")[0], 16)
    left = [Loaded("object", handle, FOREIGN), Loaded("object", public=FOREIGN), Loaded("object", handle + 1, "00")]
    assert left_by(tpm, tmp_path / "ledger", left) == [f"{handle:#x}"]
    flush(tpm, handle)


def test_nothing_is_flushed_after_a_restart_of_the_machine(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """The TPM was reset with it: what has that handle now is somebody else's."""
    boot = tmp_path / "boot"
    boot.write_text("the boot before\n")
    with contextlib.closing(Ledger(tmp_path / "ledger", boot=boot)) as ledger:
        ledger.expect(Loaded("hmac"))
    others = start_session(tpm, HMAC)
    assert left_by(tpm, tmp_path / "ledger", []) == [f"{others:#x}"]
    flush(tpm, others)


def test_nothing_is_flushed_where_a_sandbox_hides_which_start_of_the_machine_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        with contextlib.closing(Ledger(tmp_path / "ledger", boot=tmp_path / "hidden")) as ledger:
            assert ledger.left == ()
            ledger.expect(Loaded("hmac"))


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff", b'{"loaded":[{"kind":"hsm"}]}', b"[" * 5000])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger").write_bytes(content)
    with opened(tmp_path / "ledger") as ledger:
        assert ledger.left == ()


def test_a_file_that_cannot_be_opened_is_an_error_by_name(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"cannot open .*ledger") as caught:
        Ledger(tmp_path / "ledger")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ELOOP


def test_a_full_disk_keeps_nobody_from_the_tpm(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with opened(tmp_path / "ledger") as ledger:
        full = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(full, ledger._descriptor)
        os.close(full)
        with open_tpm(tpm.tcti, ledger=ledger) as own:
            assert own.sealing.unseal(own.sealing.seal(b"data")) == b"data"


def test_what_the_tpm_refused_to_load_is_not_looked_for(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(commands.START_AUTH_SESSION, 0x903)
    with opened(tmp_path / "ledger") as ledger:
        with open_tpm(proxy.tcti, ledger=ledger) as own, pytest.raises(TpmRefusedError):
            own.sealing.seal(b"data")
        assert ledger.left == ()
    others = start_session(tpm, HMAC)
    assert left_by(tpm, tmp_path / "ledger", []) == [f"{others:#x}"]
    flush(tpm, others)


def test_a_tpm_that_does_not_answer_leaves_it_for_the_next(tpm: SimulatedTpm, tmp_path: Path) -> None:
    session = start_session(tpm, HMAC)
    with opened(tmp_path / "ledger") as ledger:
        ledger.expect(Loaded("hmac"))
        ledger.loaded(session)
    with (
        opened(tmp_path / "ledger") as ledger,
        pytest.raises(TpmUnavailableError),
        open_tpm("cmd:exec true", ledger=ledger),
    ):
        pass
    assert left_by(tpm, tmp_path / "ledger", []) == []


@pytest.mark.parametrize(
    ("tcti", "raw"),
    [
        ("swtpm:port=2321", True),
        ("device:/dev/tpm0", True),
        ("device:/dev/tpmrm0", False),
        ("device:/dev/tpmrm1", False),
        ("tabrmd:bus_type=system", False),
        ("pcap:device:/dev/tpmrm0", False),
        ("pcap:swtpm:port=2321", True),
        ("cmd:ssh board tpm2_send", True),
    ],
)
def test_behind_a_resource_manager_there_is_nothing_to_do(tcti: str, *, raw: bool) -> None:
    assert is_raw(tcti) is raw
