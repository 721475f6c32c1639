"""``tpm-mtls seal`` and ``unseal``: secrets go in and come out byte for byte, and only where and while they should."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, extend
from support.seal_command import AUTH, OWNER, WRONG, SealCommand
from support.terminal import shown_on_a_terminal
from support.tpm_trace import CommandTrace
from tpm_mtls.cli import run
from tpm_mtls.identity import IdentityRecord, save_record
from tpm_mtls.policy.document import parse_policy
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

SECRET = b"my secret\n"


pytestmark = pytest.mark.usefixtures("sealing_folder")


@pytest.mark.parametrize("size", [1, 128, 129, 65536])
def test_a_secret_comes_back_byte_for_byte(command: SealCommand, size: int) -> None:
    secret = (bytes(range(256)) * 256)[-size:]
    blob = command.seal(secret)
    assert blob.isascii()
    assert command.unseal(blob) == secret


@pytest.mark.parametrize(
    ("secret", "why"), [(b"", "the secret is empty"), (b"x" * 65537, "more than 65536 bytes")], ids=["none", "large"]
)
def test_nothing_and_too_much_are_refused(command: SealCommand, secret: bytes, why: str) -> None:
    assert why in command.refused("seal", given=secret, status=2)


def test_files_are_made_for_their_owner_alone_and_none_is_overwritten(command: SealCommand, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    assert command("seal", "--in", "secret", "--out", "blob") == b"blob\n"
    assert command("unseal", "--in", "blob", "--out", "again") == b"again\n"
    assert (tmp_path / "again").read_bytes() == SECRET
    for name in ("blob", "again"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert "blob exists already" in command.refused("seal", "--in", "secret", "--out", "blob", status=10)
    assert "again exists already" in command.refused("unseal", "--in", "blob", "--out", "again", status=10)
    assert "no such file" in command.refused("seal", "--in", "absent", "--out", "other", status=8)
    assert not (tmp_path / "other").exists()


def test_answers_for_scripts(command: SealCommand) -> None:
    sealed = json.loads(command.seal(SECRET, "--json"))
    assert sealed.keys() == {"name", "policy", "encrypted_with_sealed_key", "blob", "counter"}
    assert sealed["policy"] is None
    assert not sealed["encrypted_with_sealed_key"]
    assert json.loads(command.unseal(sealed["blob"].encode(), "--json")) == {
        "base64": base64.b64encode(SECRET).decode()
    }
    bound = json.loads(command.seal(SECRET * 20, "--json", "--out", "blob", "--pcrs", "sha256:7"))
    assert bound["encrypted_with_sealed_key"]
    assert len(bound["policy"]) == 64
    assert bound["out"] == "blob"
    assert json.loads(command("unseal", "--in", "blob", "--out", "again", "--json")) == {"out": "again"}


def test_what_is_bound_to_pcrs_stays_closed_when_something_else_was_booted(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    blob = command.seal(SECRET, "--pcrs", "sha256:0,2,3,7")
    assert command.unseal(blob) == SECRET
    extend(tpm, 4)
    assert command.unseal(blob) == SECRET
    extend(tpm, 7)
    (tmp_path / "blob").write_bytes(blob)
    errors = command.refused("unseal", "--in", "blob", "--out", "again")
    assert "PCR 7 (sha256) differs: 0000" in errors
    assert "TPM_RC_POLICY_FAIL, session 1, 0x99d" in errors
    assert not (tmp_path / "again").exists()
    tpm.restart()
    assert command.unseal(blob) == SECRET


def test_what_differs_since_it_was_sealed_is_told(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    command.seal(SECRET, "--pcrs", "sha256:4,7", "--out", "blob")
    assert b"nothing differs: PCRs 4, 7 (sha256)" in command("pcr", "diff", "blob")
    extend(tpm)
    assert run(["pcr", "diff", "blob"]) == 4
    assert b"PCR 7 (sha256)" in command.capfdbinary.readouterr().out
    command.seal(SECRET, "--out", "free")
    assert "free has no policy" in command.refused("pcr", "diff", "free", status=5)
    (tmp_path / "blob").write_bytes((tmp_path / "blob").read_bytes()[:-50])
    assert "blob is no usable sealed data" in command.refused("pcr", "diff", "blob", status=5)


def test_one_of_several_recorded_states_will_do(command: SealCommand, tpm: SimulatedTpm) -> None:
    for name in ("one", "two"):
        assert run(["policy", "record", "--pcrs", "sha256:0,7", "--out", f"{name}.json"]) == 0
        extend(tpm, 7)
    command.capfdbinary.readouterr()
    states = ("--pcr-values", "one.json", "--pcr-values", "two.json")
    blob = command.seal(SECRET, *states)
    refused = command.refused("unseal", given=blob)
    assert "PCR 7 (sha256) differs" in refused
    tpm.restart()
    assert command.unseal(blob) == SECRET
    extend(tpm, 7)
    assert command.unseal(blob) == SECRET


def sign(operator: Operator, version: int, out: str, *options: str) -> None:
    arguments = ["--signer", str(operator.key_file), "--pcrs", "sha256:7", "--version", str(version), "--out", out]
    assert run(["policy", "sign", *arguments, *options]) == 0


def test_what_an_operator_signs_opens_it(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    """The signed policy lies beside the blob, or in the identity folder, or is named."""
    operator = Operator(tmp_path)
    sealed = json.loads(command.seal(SECRET, "--policy-signer", "operator.pem", "--out", "blob", "--json"))
    assert "there is no policy signed by" in command.refused("unseal", "--in", "blob", status=5)
    sign(operator, sealed["counter"] + 1, "one.signed-policy.json")
    assert command("unseal", "--in", "blob").endswith(SECRET)
    (tmp_path / "state").mkdir()
    (tmp_path / "one.signed-policy.json").rename(tmp_path / "state" / "one.signed-policy.json")
    assert command.unseal((tmp_path / "blob").read_bytes()) == SECRET
    (tmp_path / "state" / "one.signed-policy.json").rename(tmp_path / "elsewhere")
    blob = (tmp_path / "blob").read_bytes()
    assert "there is no policy signed by" in command.refused("unseal", given=blob, status=5)
    assert command.unseal(blob, "--signed-policy", "elsewhere") == SECRET

    extend(tpm, 7)
    refused = command.refused("unseal", "--signed-policy", "elsewhere", given=blob)
    assert "PCR 7 (sha256) differs" in refused
    sign(operator, sealed["counter"] + 2, "two.signed-policy.json")
    assert command("unseal", "--in", "blob").endswith(SECRET)


def test_what_somebody_else_signs_does_not(command: SealCommand, tmp_path: Path) -> None:
    Operator(tmp_path)
    (tmp_path / "other").mkdir()
    other = Operator(tmp_path / "other")
    none = ("--counter", "none")
    command.seal(SECRET, "--policy-signer", "operator.pem", *none, "--out", "blob")
    sign(other, 1, "one.signed-policy.json", *none)
    command.capfdbinary.readouterr()
    assert "there is no policy signed by" in command.refused("unseal", "--in", "blob", status=5)
    assert "no usable policy" in command.refused("unseal", "--in", "blob", "--signed-policy", "operator.pem", status=5)


def test_the_policy_of_another_object_is_taken(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    assert run(["keygen", "create", "--state-dir", "state", "--out", "key.pem", "--pcrs", "sha256:7"]) == 0
    command.capfdbinary.readouterr()
    (file,) = tmp_path.glob("*.policy.json")
    blob = command.seal(SECRET, "--policy", file.name)
    assert command.unseal(blob) == SECRET
    with_value = command.seal(SECRET, "--policy", file.name, "--auth", "file:auth")
    assert command.unseal(with_value, "--auth", "file:auth") == SECRET
    assert "needs its authorization value" in command.refused("unseal", given=with_value)
    extend(tpm)
    assert "PCR 7" in command.refused("unseal", given=blob)
    assert len(parse_policy(file.read_bytes()).policy) == 1


def test_a_policys_digest_alone_is_no_policy(command: SealCommand, tmp_path: Path) -> None:
    """What tpm2_createpolicy writes: nobody could tell how to satisfy it."""
    (tmp_path / "policy.dat").write_bytes(bytes(32))
    errors = command.refused("seal", "--policy", "policy.dat", given=SECRET, status=5)
    assert "only a policy's digest" in errors
    assert "--pcrs" in errors


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--pcrs", "sha256:7", "--policy", "file"], "there are two policies"),
        (["--pcrs", "sha256:24"], "not a selection of PCRs"),
        (["--pcrs", "sha256:7", "--policy-signer", "operator.pem"], "either fixed or signed"),
        (["--counter", "none"], "who signs the policies?"),
        (["--format", "tpm2-tools"], "tpm2-tools have two files"),
        (["--nv", "0x01800001", "--out", "blob"], "in the NV memory, or in a file"),
        (["--nv", "0x01800001", "--format", "tpm2-tools"], "in the NV memory, or in a file"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_the_tpm_is_asked(
    command: SealCommand, tmp_path: Path, arguments: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Operator(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", "swtpm:port=1")
    assert why in command.refused("seal", *arguments, given=SECRET, status=2)


def test_a_blob_that_says_its_policy_is_not_told_another(command: SealCommand) -> None:
    blob = command.seal(SECRET, "--pcrs", "sha256:7")
    assert "says its policy itself" in command.refused("unseal", "--pcrs", "sha256:7", given=blob, status=2)
    free = command.seal(SECRET)
    assert "has no policy" in command.refused("unseal", "--pcrs", "sha256:7", given=free, status=2)


@pytest.mark.parametrize("policy", [[], ["--pcrs", "sha256:7"]], ids=["alone", "with PCRs"])
def test_an_authorization_value_is_needed(command: SealCommand, tpm: SimulatedTpm, policy: list[str]) -> None:
    blob = command.seal(SECRET, "--auth", "file:auth", *policy)
    assert command.unseal(blob, "--auth", "file:auth") == SECRET
    trace = CommandTrace(tpm, tpm.simulator.folder, command.monkeypatch)
    errors = command.refused("unseal", "--tcti", trace.tcti, given=blob)
    assert "needs its authorization value" in errors
    assert not any(name.startswith("Unseal") for name in trace.commands())  # a try would count towards the lockout
    wrong = command.refused("unseal", "--auth", "file:wrong", given=blob)
    assert "wrong authorization value" in wrong
    assert "0x98e" in wrong
    assert WRONG not in wrong


def test_the_value_of_what_has_none_does_not_matter(command: SealCommand) -> None:
    """The TPM keeps no lockout for it (noDA), and says so by another code."""
    blob = command.seal(SECRET)
    assert "0x9a2" in command.refused("unseal", "--auth", "file:auth", given=blob)


def test_in_lockout_the_remedy_is_told(command: SealCommand, tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=1000")
    blob = command.seal(SECRET, "--auth", "file:auth")
    free = command.seal(SECRET)
    command.refused("unseal", "--auth", "file:wrong", given=blob)
    errors = command.refused("unseal", "--auth", "file:auth", given=blob)
    assert "0x921" in errors
    assert "--clear-lockout" in errors
    assert command.unseal(free) == SECRET
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    assert command.unseal(blob, "--auth", "file:auth") == SECRET


def identity(folder: Path, tpm: SimulatedTpm) -> None:
    """The device's identity, of which only the storage root key's Name matters here."""
    with open_tpm(tpm.tcti) as opened:
        name = opened.srk.ensure().name.hex()
    record = IdentityRecord(
        device="d", key="k", algorithm="ecc-p256", key_name="", srk_name=name, tpm_vendor="IBM", tpm_firmware="1",
        reset_count=0, ca_url="https://ca.example", enrolled_by="tpm",
    )  # fmt: skip
    save_record(folder, record)


@pytest.mark.parametrize("enrolled", [True, False], ids=["enrolled", "not enrolled"])
def test_a_blob_of_another_machine_is_named(
    command: SealCommand, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path, *, enrolled: bool
) -> None:
    other = make_tpm()
    blob = command.seal(SECRET)
    if enrolled:
        identity(tmp_path / "state", other)
    else:
        with open_tpm(other.tcti) as opened:
            opened.srk.ensure()
    errors = command.refused("unseal", "--tcti", other.tcti, given=blob)
    assert "another TPM" in errors
    assert "was cleared since" in errors
    assert "on the device that sealed it" in errors


@pytest.mark.parametrize("enrolled", [True, False], ids=["enrolled", "not enrolled"])
def test_after_the_tpm_was_cleared_it_is_said_that_the_secret_is_lost(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path, *, enrolled: bool
) -> None:
    if enrolled:
        identity(tmp_path / "state", tpm)
    blob = command.seal(SECRET)
    tpm.tool("tpm2_clear")
    errors = command.refused("unseal", given=blob, status=10 if enrolled else 4)
    assert "there is none now" in errors
    assert "lost" in errors
    if enrolled:
        assert "there is none now" in command.refused("seal", given=SECRET, status=10)


def test_a_storage_root_key_that_was_replaced_is_not_used(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    """Somebody who could make another one would read what is sealed to it."""
    identity(tmp_path / "state", tpm)
    blob = command.seal(SECRET)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "other.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "other.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    for verb, given in (("seal", SECRET), ("unseal", blob)):
        errors = command.refused(verb, given=given, status=10)
        assert "the TPM's storage root key is not 000b" in errors


def test_a_damaged_identity_stops_everything(command: SealCommand, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "identity.json").write_text("{}")
    assert "identity.json is damaged" in command.refused("seal", given=SECRET, status=10)


def test_hierarchies_with_authorization_values(command: SealCommand, tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_changeauth", "-c", "owner", OWNER)
    assert "--owner-auth" in command.refused("seal", given=SECRET)
    blob = command.seal(SECRET, "--owner-auth", "file:owner")
    assert command.unseal(blob) == SECRET


def test_a_storage_root_key_with_an_authorization_value(
    command: SealCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-p", OWNER, "-c", "srk.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    assert "--srk-auth" in command.refused("seal", given=SECRET)
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    blob = command.seal(SECRET, "--srk-auth", "file:owner")
    assert command.unseal(blob, "--srk-auth", "file:owner") == SECRET
    assert "--srk-auth" in command.refused("unseal", given=blob)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the blob is empty"),
        (b"x" * (256 * 1024 + 1), "more than 262144 bytes"),
        (b"no blob", "the blob is no usable sealed data"),
    ],
    ids=["nothing", "too much", "something else"],
)
def test_what_is_no_blob_is_refused(command: SealCommand, data: bytes, why: str) -> None:
    assert why in command.refused("unseal", given=data, status=5 if b"no" in data else 2)


def test_a_damaged_blob_is_refused_and_nothing_comes_out(command: SealCommand, tmp_path: Path) -> None:
    blob = command.seal(SECRET * 50)
    (tmp_path / "cut").write_bytes(blob[:-100])
    assert "cut is no usable sealed data: it is cut off" in command.refused("unseal", "--in", "cut", status=5)
    lines = blob.splitlines(keepends=True)
    lines[-3] = lines[-3].swapcase()
    errors = command.refused("unseal", given=b"".join(lines), status=5)
    assert "the block with the secret is damaged" in errors
    lines = blob.splitlines(keepends=True)
    private = lines.index(b"-----END TSS2 PRIVATE KEY-----\n") - 2
    lines[private] = lines[private].swapcase()
    assert "or it is damaged" in command.refused("unseal", given=b"".join(lines))


def test_at_a_terminal_a_secret_is_asked_for_and_a_blob_is_not(command: SealCommand) -> None:
    command.monkeypatch.setattr("getpass.getpass", lambda _: "typed")
    blob = command("seal", terminal=True)
    assert command.unseal(blob) == b"typed"
    assert b"name its file" in command("unseal", terminal=True, status=2)


def test_without_a_tpm_nothing_comes_out(command: SealCommand) -> None:
    blob = command.seal(SECRET)
    nowhere = ("--tcti", "swtpm:host=127.0.0.1,port=1")
    assert "no TPM answers" in command.refused("seal", *nowhere, given=SECRET, status=3)
    assert "no TPM answers" in command.refused("unseal", *nowhere, given=blob, status=3)


def test_how_many_commands_it_takes(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    command.seal(SECRET)  # makes the storage root key
    trace = CommandTrace(tpm, tmp_path, command.monkeypatch)
    where = ("--tcti", trace.tcti)
    blob = command.seal(SECRET * 20, "--pcrs", "sha256:7", *where)
    assert trace.commands() == ["PCR_Read", "ReadPublic", "StartAuthSession", "Create"]
    trace.restart()
    assert command.unseal(blob, *where) == SECRET * 20
    assert trace.commands() == ["ReadPublic", "Load", "StartAuthSession", "PolicyPCR", "Unseal", "FlushContext"]


def test_neither_secret_nor_value_crosses_the_bus(command: SealCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    command.seal(SECRET)
    trace = CommandTrace(tpm, tmp_path, command.monkeypatch)
    where = ("--tcti", trace.tcti, "--auth", "file:auth")
    secret = b"a secret that nobody shall see"
    blob = command.seal(secret, *where)
    sealed = next(tmp_path.glob("commands-*.pcapng")).read_bytes()
    trace.restart()
    assert command.unseal(blob, *where) == secret
    captured = [path.read_bytes() for path in tmp_path.glob("commands-*.pcapng")]
    assert len(captured) == 2
    assert sealed
    for each in captured:
        assert secret not in each
        assert AUTH.encode() not in each


def test_a_full_disk_behind_standard_output_is_an_error(command: SealCommand, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(command.seal(SECRET))
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "unseal", "--state-dir", "state", "--in", "blob"],
            stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert done.returncode == 8
    assert b"cannot write /dev/stdout: no space left on device" in done.stderr


def test_a_blob_is_named_with_or_without_an_option(command: SealCommand, tmp_path: Path) -> None:
    (tmp_path / "disk.sealed").write_bytes(command.seal(SECRET))
    assert command("unseal", "disk.sealed") == command("unseal", "--in", "disk.sealed") == SECRET
    errors = command.refused("unseal", "disk.sealed", "--in", "other", status=2)
    assert errors == (
        "tpm-mtls: error: there are two files to unseal\n"
        "tpm-mtls: hint: leave --in out: tpm-mtls unseal --state-dir state disk.sealed\n"
    )
    assert "NV memory, or in a file" in command.refused("unseal", "disk.sealed", "--nv", "0x01800001", status=2)


def test_on_a_terminal_the_prompt_gets_a_line_of_its_own(command: SealCommand, tmp_path: Path) -> None:
    (tmp_path / "disk.sealed").write_bytes(command.seal(b"no newline"))
    unseal = [sys.executable, "-m", "tpm_mtls", "unseal", "disk.sealed", "--state-dir", "state"]
    assert shown_on_a_terminal(unseal) == b"no newline\r\n"
    assert subprocess.run(unseal, capture_output=True, check=True).stdout == b"no newline"


def test_help_has_an_example_and_loads_no_tpm_library(command: SealCommand) -> None:
    for verb in ("seal", "unseal"):
        assert b"Example:" in command(verb, "--help")
    code = "import sys, tpm_mtls_agent.sealing.cli; print('tpm2_pytss' in sys.modules, 'cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False False\n"
