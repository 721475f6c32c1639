"""Stock tpm2-tools read what ``tpm-mtls seal`` seals, and ``tpm-mtls unseal`` what they seal, by the same steps."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.policies import extend
from support.sealing import sealed_object_of
from tpm_mtls.errors import StateError, StorageRootKeyChangedError
from tpm_mtls.sealed_blob import SealedBlob
from tpm_mtls.structures.tss2_file import Kind, Tss2File
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_agent.sealing.blobs import of_this_tpm, seal_blob
from tpm_mtls_agent.sealing.command import write_tools_files

if TYPE_CHECKING:
    from pathlib import Path

    from support.seal_command import SealCommand
    from support.tpm import SimulatedTpm
    from tpm_mtls.structures import PublicArea

SECRET = b"my secret\n"
PCRS = "sha256:0,2,3,7"
SRK = "0x81000001"


class Tools:
    """Runs tpm2-tools in ``folder``; there is no resource manager, so what they leave in the TPM is flushed."""

    def __init__(self, tpm: SimulatedTpm, folder: Path) -> None:
        self._tpm = tpm
        self._folder = folder

    def __call__(self, line: str, *, given: bytes = b"", status: int = 0) -> bytes:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
        done = subprocess.run(
            line.split(),
            input=given,
            capture_output=True,
            cwd=self._folder,
            env=environment | {"TPM2TOOLS_TCTI": self._tpm.tcti},
            check=False,
            timeout=60,
        )
        assert done.returncode == status, done.stderr.decode()
        self._tpm.flush()
        self._tpm.tool("tpm2_flushcontext", "--loaded-session")
        return done.stdout if not status else done.stderr


@pytest.fixture
def tools(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    (tmp_path / "auth").write_text("hello")
    (tmp_path / "auth").chmod(0o600)
    return Tools(tpm, tmp_path)


def load_ours(tools: Tools, name: str) -> str:
    tools(f"tpm2_load -C {SRK} -u {name}.pub -r {name}.priv -c {name}.ctx")
    return f"{name}.ctx"


def test_they_unseal_what_we_seal(tools: Tools, command: SealCommand) -> None:
    assert command("seal", "--format", "tpm2-tools", "--out", "ours", given=SECRET) == b"ours.pub\nours.priv\n"
    assert tools(f"tpm2_unseal -c {load_ours(tools, 'ours')}") == SECRET


def test_they_unseal_what_we_bind_to_pcrs(tools: Tools, command: SealCommand, tpm: SimulatedTpm) -> None:
    command("seal", "--format", "tpm2-tools", "--out", "ours", "--pcrs", PCRS, given=SECRET)
    loaded = load_ours(tools, "ours")
    assert tools(f"tpm2_unseal -c {loaded} -p pcr:{PCRS}") == SECRET
    assert b"0x12F" in tools(f"tpm2_unseal -c {loaded}", status=1)
    extend(tpm)
    assert b"0x99D" in tools(f"tpm2_unseal -c {loaded} -p pcr:{PCRS}", status=1)


def test_they_unseal_with_our_authorization_value(tools: Tools, command: SealCommand) -> None:
    command("seal", "--format", "tpm2-tools", "--out", "ours", "--auth", "file:auth", given=SECRET)
    loaded = load_ours(tools, "ours")
    assert tools(f"tpm2_unseal -c {loaded} -p hello") == SECRET
    tools(f"tpm2_unseal -c {loaded} -p hallo", status=3)


def test_they_compute_the_same_policy(tools: Tools, command: SealCommand, tmp_path: Path) -> None:
    command("seal", "--format", "tpm2-tools", "--out", "ours", "--pcrs", PCRS, given=SECRET)
    tools(f"tpm2_createpolicy --policy-pcr --pcr-list={PCRS} --policy=pcr.pol")
    assert (tmp_path / "pcr.pol").read_bytes() in (tmp_path / "ours.pub").read_bytes()


def test_they_take_no_more_than_a_tpm_seals(tools: Tools, command: SealCommand, tmp_path: Path) -> None:
    assert tools
    errors = command.refused("seal", "--format", "tpm2-tools", "--out", "ours", given=b"x" * 129, status=2)
    assert "129 bytes, and a TPM seals 128" in errors
    (tmp_path / "ours.priv").touch()
    assert "ours.priv exists already" in command.refused(
        "seal", "--format", "tpm2-tools", "--out", "ours", given=SECRET, status=10
    )
    assert not (tmp_path / "ours.pub").exists()


def test_document_004_sealed_by_them(tools: Tools, command: SealCommand) -> None:
    """Its first possibility, without and with PCRs; the primary key is made again when it is needed."""
    tools("tpm2_createprimary --key-algorithm=ecc --key-context=primary.ctx")
    create = "tpm2_create --parent-context=primary.ctx --sealing-input=-"
    tools(f"{create} --private=secret.priv --public=secret.pub", given=SECRET)
    tools(f"tpm2_createpolicy --policy-pcr --pcr-list={PCRS} --policy=pcr.pol")
    tools(f"{create} --private=bound.priv --public=bound.pub --policy=pcr.pol", given=SECRET)
    theirs = ("--format", "tpm2-tools", "--parent", "ecc")
    assert command("unseal", *theirs, "--in", "secret") == SECRET
    assert command("unseal", *theirs, "--in", "bound", "--pcrs", PCRS) == SECRET
    assert "nothing says which" in command.refused("unseal", *theirs, "--in", "bound", status=5)
    tools(f"tpm2_pcrextend 7:sha256={'00' * 32}")
    assert "0x99d" in command.refused("unseal", *theirs, "--in", "bound", "--pcrs", PCRS)
    assert command("unseal", *theirs, "--in", "secret") == SECRET
    assert "0x1df" in command.refused("unseal", "--format", "tpm2-tools", "--in", "secret", "--parent", "rsa")


def test_document_002_sealed_by_them(tools: Tools, command: SealCommand, tmp_path: Path) -> None:
    """A telemetry key, bound to PCR 7, under an RSA primary key."""
    key = os.urandom(32)
    (tmp_path / "telemetry.key").write_bytes(key)
    for line in (
        "tpm2_createprimary -C o -g sha256 -G rsa -c primary.ctx",
        "tpm2_pcrread sha256:7 -o pcr7.bin",
        "tpm2_createpolicy --policy-pcr -l sha256:7 -f pcr7.bin -L policy.dat",
        "tpm2_create -C primary.ctx -u key.pub -r key.priv -L policy.dat -i telemetry.key",
        "tpm2_load -C primary.ctx -u key.pub -r key.priv -c key.ctx",
    ):
        tools(line)
    theirs = ("--parent", "rsa", "--pcrs", "sha256:7")
    assert command("unseal", "--format", "tpm2-tools", "--in", "key", *theirs) == key
    tools("tpm2_encodeobject -C primary.ctx -u key.pub -r key.priv -o key.pem")
    assert command("unseal", "--in", "key.pem", *theirs) == key
    # the file says the owner hierarchy's standard primary key, which that one was not
    assert "0x1df" in command.refused("unseal", "--in", "key.pem", "--pcrs", "sha256:7")


def test_document_004_in_nv_memory_by_them(tools: Tools, command: SealCommand) -> None:
    """Its second possibility, at its own index."""
    tools("tpm2_nvdefine --size 10 --attributes authread|authwrite 0x2000A")
    tools("tpm2_nvwrite --input=- 0x2000A", given=SECRET)
    assert command("unseal", "--nv", "0x2000A") == SECRET
    tools("tpm2_nvundefine 0x2000A")
    tools(f"tpm2_createpolicy --policy-pcr --pcr-list={PCRS} --policy=pcr.pol")
    tools("tpm2_nvdefine --size 10 --attributes=policyread|authwrite --policy=pcr.pol 0x2000A")
    tools("tpm2_nvwrite --input=- 0x2000A", given=SECRET)
    assert command("unseal", "--nv", "0x2000A", "--pcrs", PCRS) == SECRET
    tools(f"tpm2_pcrextend 7:sha256={'00' * 32}")
    assert "0x99d" in command.refused("unseal", "--nv", "0x2000A", "--pcrs", PCRS)


def test_document_004_in_nv_memory_by_us(tools: Tools, command: SealCommand) -> None:
    command("seal", "--nv", "0x2000A", given=SECRET)
    assert tools("tpm2_nvread 0x2000A") == SECRET
    tools("tpm2_nvundefine 0x2000A")
    command("seal", "--nv", "0x2000A", "--pcrs", PCRS, given=SECRET)
    assert tools(f"tpm2_nvread --auth=pcr:{PCRS} 0x2000A") == SECRET
    tools("tpm2_nvread 0x2000A", status=1)
    tools(f"tpm2_pcrextend 7:sha256={'00' * 32}")
    tools(f"tpm2_nvread --auth=pcr:{PCRS} 0x2000A", status=1)


def test_other_ways_to_make_an_index_are_read_too(tools: Tools, command: SealCommand) -> None:
    tools("tpm2_nvdefine --size 10 --attributes ownerread|ownerwrite 0x1800002")
    tools("tpm2_nvwrite -C o --input=- 0x1800002", given=SECRET)
    assert command("unseal", "--nv", "0x01800002") == SECRET
    tools("tpm2_nvdefine --size 10 --attributes ownerwrite|ppread 0x1800003")
    tools("tpm2_nvwrite -C o --input=- 0x1800003", given=SECRET)
    assert "cannot be read" in command.refused("unseal", "--nv", "0x01800003")


def test_their_object_under_the_storage_root_key(tools: Tools, command: SealCommand) -> None:
    """With a value that dictionary-attack protection guards, and under another persistent key."""
    command.seal(SECRET)
    tools(f"tpm2_create -C {SRK} -i- -u a.pub -r a.priv -p hello", given=SECRET)
    theirs = ("unseal", "--format", "tpm2-tools", "--in", "a")
    assert command(*theirs, "--auth", "file:auth") == SECRET
    assert "0x98e" in command.refused(*theirs)
    tools("tpm2_createprimary -C o -G rsa -c other.ctx")
    tools("tpm2_evictcontrol -C o -c other.ctx 0x81000005")
    tools("tpm2_create -C 0x81000005 -i- -u b.pub -r b.priv", given=SECRET)
    theirs = ("unseal", "--format", "tpm2-tools", "--in", "b")
    assert command(*theirs, "--parent", "0x81000005") == SECRET
    assert "0x1df" in command.refused(*theirs)
    tools("tpm2_encodeobject -C 0x81000005 -u b.pub -r b.priv -o b.pem")
    assert command("unseal", "--in", "b.pem", "--parent", "0x81000005") == SECRET


def test_their_signing_key_is_no_sealed_data(tools: Tools, command: SealCommand) -> None:
    command.seal(SECRET)
    tools(f"tpm2_create -C {SRK} -G ecc -u k.pub -r k.priv")
    theirs = ("--format", "tpm2-tools", "--in", "k")
    assert "no sealed data, but a key" in command.refused("unseal", *theirs, status=5)
    assert "not a parent" in command.refused("unseal", *theirs, "--parent", "srk", status=2)


def test_of_two_files_both_are_written_or_none(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        blob = seal_blob(opened, SECRET)
    base = tmp_path / "sealed"
    (tmp_path / "sealed.priv").touch()
    with pytest.raises(StateError, match="exists already"):
        write_tools_files(blob, base)
    assert not (tmp_path / "sealed.pub").exists()


def test_a_parent_that_nothing_can_load_is_named(tools: Tools, command: SealCommand) -> None:
    assert tools
    for parent in (0x40000007, 0x80000001, 0x81800000):
        pem = Tss2File(Kind.SEALED, *sealed_parts(), parent=parent, empty_auth=True).to_pem()
        errors = command.refused("unseal", given=pem, status=5)
        assert f"it was sealed under {parent:#010x}, which is neither persistent nor the owner hierarchy" in errors
        assert "--parent" in errors


def sealed_parts() -> tuple[PublicArea, bytes]:
    sealed = sealed_object_of("elsewhere")
    return sealed.public, sealed.private


def test_a_key_that_is_exchanged_meanwhile_is_not_taken_for_another_machine() -> None:
    """Whose blob it is, is only told by the Name in it; the session's own check says what it saw."""
    blob = SealedBlob(sealed_object_of("theirs"), SRK_HANDLE, empty_auth=True)
    with pytest.raises(StorageRootKeyChangedError), of_this_tpm(blob, "the blob"):
        raise StorageRootKeyChangedError(expected=b"then", found=b"now")
