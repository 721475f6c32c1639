"""Keys that the TPM uses only while the machine has booted what was agreed on: made, used, shown, exported, removed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from cryptography import x509

from support.policies import Operator, extend, present_state
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.cli import run
from tpm_mtls.errors import StateError, StorageError, UsageError
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.files import find_policy, policy_path
from tpm_mtls.policy.new_policy import NewPolicy, read_wish
from tpm_mtls.structures import Attribute, KeyAlgorithm, parse_tss2_pem
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.keys import FileForm, create_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

Command: TypeAlias = "Callable[..., Any]"

CREATE_LOADED, EVICT_CONTROL = 0x191, 0x120


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: SimulatedTpm) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)


@pytest.fixture
def keygen(capsys: pytest.CaptureFixture[str], state_dir: Path) -> Command:
    """Runs ``tpm-mtls keygen … --json``, which must end with ``status``: its answer, or its errors if it fails."""

    def command(verb: str, *arguments: str, status: int = 0, text: bool = False) -> Any:  # noqa: ANN401 - JSON
        options = ("--state-dir", str(state_dir), *(() if text else ("--json",)))
        assert run(["keygen", verb, *arguments, *options]) == status
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        if status:
            assert output == ""
            return errors
        return output if text else json.loads(output)

    return command


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def secret(path: Path, value: str = "right horse") -> str:
    path.write_text(value + "\n")
    path.chmod(0o600)
    return f"file:{path}"


def request_of(path: Path) -> x509.CertificateSigningRequest:
    request = x509.load_pem_x509_csr(path.read_bytes())
    assert request.is_signature_valid
    return request


# --- made and used


@pytest.mark.parametrize("algorithm", ["ecc-p256", "ecc-p384", "rsa-2048"])
def test_a_key_bound_to_pcrs_signs_until_something_else_is_booted(
    keygen: Command, tpm: SimulatedTpm, tmp_path: Path, algorithm: str
) -> None:
    made = keygen("create", "--out", "key.pem", "--algorithm", algorithm, "--pcrs", "sha256:0,2,4,7")
    key = parse_tss2_pem((tmp_path / "key.pem").read_bytes())
    assert set(key.public.attribute_words) == {"fixedTPM", "fixedParent", "sensitiveDataOrigin", "noDA", "sign"}
    assert (made["policy"], made["name"]) == (key.public.policy.hex(), key.public.name.hex())
    assert made["policy_file"] == str(tmp_path / f"{made['name']}.policy.json")
    assert not key.has_policy  # the provider cannot load such a file

    keygen("csr", "--key", "key.pem", "--out", "a.csr")

    assert request_of(tmp_path / "a.csr").public_key()
    extend(tpm, 4)
    errors = keygen("csr", "--key", "key.pem", "--out", "b.csr", status=4)
    assert errors.startswith("tpm-mtls: error: cannot sign: the key's policy is not satisfied")
    assert "tpm-mtls policy check" in errors
    assert not (tmp_path / "b.csr").exists()


def test_the_tpm_itself_refuses_whoever_goes_round_the_relay(
    keygen: Command, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    keygen("create", "--handle", "0x81000100", "--pcrs", "sha256:7")
    (tmp_path / "message").write_text("x")
    sign = ("tpm2_sign", "-c", "0x81000100", "-g", "sha256", "-o", "signature", "message")
    assert "authValue or authPolicy is not available" in tpm.tool(*sign, check=False, cwd=tmp_path).stderr
    tpm.tool("tpm2_startauthsession", "--policy-session", "-S", "session", cwd=tmp_path)
    tpm.tool("tpm2_policypcr", "-S", "session", "-l", "sha256:7", cwd=tmp_path)
    tpm.tool(*sign, "-p", "session:session", cwd=tmp_path)
    tpm.tool("tpm2_flushcontext", "session", cwd=tmp_path)


def test_a_persistent_key_s_policy_goes_into_the_identity_folder(
    keygen: Command, tmp_path: Path, state_dir: Path
) -> None:
    made = keygen("create", "--handle", "next", "--pcrs", "sha256:7")
    assert made["key"] == "handle:0x81000100"
    assert made["policy_file"] == str(policy_path(state_dir, bytes.fromhex(made["name"])))
    keygen("csr", "--key", made["key"], "--out", "a.csr")
    request_of(tmp_path / "a.csr")


def test_the_authorization_value_is_needed_on_top(keygen: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    auth = ("--auth", secret(tmp_path / "right"))
    keygen("create", "--out", "key.pem", "--pcrs", "sha256:7", *auth)
    key = parse_tss2_pem((tmp_path / "key.pem").read_bytes())
    assert Attribute.NODA not in key.public.attributes
    keygen("csr", "--key", "key.pem", "--out", "a.csr", *auth)
    assert "needs its authorization value" in keygen("csr", "--key", "key.pem", "--out", "b.csr", status=4)
    wrong = ("--auth", secret(tmp_path / "wrong", "wrong horse"))
    assert "wrong authorization value" in keygen("csr", "--key", "key.pem", "--out", "b.csr", *wrong, status=4)
    extend(tpm)
    keygen("csr", "--key", "key.pem", "--out", "b.csr", *auth, status=4)


def test_any_of_several_states_will_do(keygen: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    import msgspec

    (tmp_path / "before.json").write_bytes(msgspec.json.encode(present_state(tpm, "sha256:7")))
    extend(tpm, 7)
    keygen("create", "--out", "key.pem", "--pcrs", "sha256:7", "--pcr-values", "before.json")
    keygen("csr", "--key", "key.pem", "--out", "a.csr")
    tpm.restart()
    keygen("csr", "--key", "key.pem", "--out", "a.csr")
    extend(tpm, 7, measured="cd" * 32)
    assert "in none of the states" in keygen("csr", "--key", "key.pem", "--out", "a.csr", status=4)


def test_a_key_works_with_what_the_operator_signed_and_after_an_update_with_what_is_signed_then(
    keygen: Command, tpm: SimulatedTpm, tmp_path: Path, operator: Operator
) -> None:
    made = keygen("create", "--out", "key.pem", "--policy-signer", "operator.pem", "--policy-ref", "web")
    assert made["counter"] == 1
    assert "there is none for it" in keygen("csr", "--key", "key.pem", "--out", "a.csr", status=5)

    def allow(version: int) -> None:
        policy = (*present_state(tpm).pcrs, not_beyond(DEFAULT_COUNTER, version))
        signed = operator.sign(*policy, version=version, policy_ref=b"web")
        (tmp_path / f"{version}.signed-policy.json").write_bytes(encode(signed))

    allow(1)
    keygen("csr", "--key", "key.pem", "--out", "a.csr")
    extend(tpm)
    keygen("csr", "--key", "key.pem", "--out", "b.csr", status=4)
    allow(2)
    keygen("csr", "--key", "key.pem", "--out", "b.csr")
    assert request_of(tmp_path / "a.csr").public_key() == request_of(tmp_path / "b.csr").public_key()


def test_where_the_counter_stands_is_said(
    keygen: Command, tpm: SimulatedTpm, operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_tpm(tpm.tcti) as opened:
        for _ in range(3):
            opened.counters.make(0x01500200)
            opened.nv.remove(0x01500200)
    assert run(["keygen", "create", "--out", "key.pem", "--policy-signer", str(operator.public_file)]) == 0
    assert "the counter stands at 4: sign with --version 4 or more" in capsys.readouterr().err
    without = ("--out", "b.pem", "--policy-signer", "operator.pem", "--counter", "none")
    assert keygen("create", *without)["counter"] is None


def test_wishes_that_contradict_each_other_are_refused(
    keygen: Command, tpm: SimulatedTpm, operator: Operator, tmp_path: Path
) -> None:
    out = ("create", "--out", "key.pem")
    signer = ("--policy-signer", str(operator.public_file))
    assert "either fixed or signed" in keygen(*out, "--pcrs", "sha256:7", *signer, status=2)
    assert "who signs the policies" in keygen(*out, "--policy-ref", "web", status=2)
    assert "who signs the policies" in keygen(*out, "--pcrs", "sha256:7", "--counter", "none", status=2)
    assert "not a selection of PCRs" in keygen(*out, "--pcrs", "7", status=2)
    assert "not an NV index" in keygen(*out, *signer, "--counter", "1", status=2)
    assert "is a private key" in keygen(*out, "--policy-signer", "operator.key.pem", status=5)
    assert "cannot read gone.json" in keygen(*out, "--pcr-values", "gone.json", status=8)
    assert tpm.handles("persistent") == []
    assert not (tmp_path / "key.pem").exists()
    with pytest.raises(UsageError, match="more than 32 bytes"):
        read_wish(pcrs=None, pcr_values=(), policy_signer=operator.public_file, policy_ref="x" * 33, counter=None)


def test_pcrs_cost_one_command(
    keygen: Command, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    keygen("create", "--out", "key.pem", "--pcrs", "sha256:0,2,4,7", "--tcti", trace.tcti)
    assert trace.commands() == ["PCR_Read", "CreateLoaded", "FlushContext"]


# --- nothing half made


def test_what_fails_leaves_no_policy(tpm: SimulatedTpm, tmp_path: Path, state_dir: Path) -> None:
    policy = NewPolicy(state_dir, present_state(tpm).pcrs)
    with open_tpm(tpm.tcti) as opened:
        with pytest.raises(StorageError, match="cannot write"):  # no folder for the policy
            create_key(opened, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "key.pem"), policy=policy)
        state_dir.mkdir()
        with pytest.raises(StorageError, match="cannot write"):  # none for the key
            create_key(opened, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "gone" / "key.pem"), policy=policy)
        (tmp_path / "there").write_text("x")
        with pytest.raises(StateError, match="exists already"):
            create_key(opened, KeyAlgorithm.ECC_P256, FileForm(tmp_path / "there"), policy=policy)
    assert list(state_dir.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "there"]


@pytest.mark.parametrize(("command", "skip"), [(CREATE_LOADED, 1), (EVICT_CONTROL, 1)])
def test_killed_at_any_moment_no_key_is_without_its_policy(
    tpm: SimulatedTpm, tmp_path: Path, state_dir: Path, command: int, skip: int
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, signal.SIGKILL, skip=skip)
    words = ["keygen", "create", "--handle", "0x81000100", "--pcrs", "sha256:7", "--state-dir", str(state_dir)]
    killed = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", *words, "--tcti", proxy.tcti], capture_output=True, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        for handle in set(opened.persistent_handles()) - {0x81000001}:
            assert find_policy(opened.read_public(handle).public.name, [state_dir]) is not None
    assert (command == EVICT_CONTROL) == ("0x81000100" in tpm.handles("persistent"))


# --- shown, listed, removed


def test_show_says_what_must_hold(keygen: Command, tmp_path: Path, state_dir: Path) -> None:
    keygen("create", "--out", "key.pem", "--pcrs", "sha256:0,7")
    assert keygen("show", "--key", "key.pem")["must_hold"].startswith("PCRs 0, 7 (sha256) as on 20")
    assert "must hold     PCRs 0, 7 (sha256) as on" in keygen("show", "--key", "key.pem", text=True)
    made = keygen("create", "--handle", "next", "--pcrs", "sha256:0,7")
    shown = keygen("show", "--key", made["key"])
    assert (shown["policy"], shown["role"]) == (made["policy"], "TLS key")
    assert shown["must_hold"].startswith("PCRs 0, 7")
    assert "TLS key, with a policy" in keygen("list", text=True)
    policy_path(state_dir, bytes.fromhex(made["name"])).write_text("{")
    assert "is no usable policy" in keygen("show", "--key", made["key"])["must_hold"]
    policy_path(state_dir, bytes.fromhex(made["name"])).unlink()
    assert keygen("show", "--key", made["key"])["must_hold"] is None
    keygen("create", "--out", "plain.pem")
    assert "must hold" not in keygen("show", "--key", "plain.pem", text=True)
    assert (tmp_path / "plain.pem").exists()


def test_a_removed_key_takes_its_policy_with_it(keygen: Command, state_dir: Path, tpm: SimulatedTpm) -> None:
    keygen("create", "--handle", "next", "--pcrs", "sha256:7")
    kept = keygen("create", "--handle", "next", "--pcrs", "sha256:7")
    keygen("remove", "--handle", "0x81000100", "--yes")
    [_, listed] = keygen("list")["objects"]
    assert (listed["key"], listed["role"], listed["must_hold"][:5]) == ("handle:0x81000101", "TLS key", "PCR 7")
    assert [path.name for path in state_dir.iterdir()] == [f"{kept['name']}.policy.json"]
    assert "0x81000100" not in tpm.handles("persistent")


def test_a_folder_that_this_user_may_not_look_into_hides_policies_and_nothing_else(
    keygen: Command, tmp_path: Path, tpm: SimulatedTpm, capsys: pytest.CaptureFixture[str]
) -> None:
    keygen("create", "--handle", "next", "--pcrs", "sha256:7")
    elsewhere = ("--state-dir", str(tmp_path / ("x" * 256)))
    assert run(["keygen", "list", *elsewhere, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["objects"][-1]
    assert (listed["role"], listed["must_hold"][:21]) == ("TLS key", "unknown: cannot read ")
    assert run(["keygen", "remove", "--handle", "0x81000100", "--yes", *elsewhere]) == StorageError.exit_code
    assert "0x81000100" in tpm.handles("persistent")
