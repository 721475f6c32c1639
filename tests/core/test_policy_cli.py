"""``tpm-mtls policy``: what an operator and a device's administrator type."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from support.policies import ZEROS, Operator, extend, make_policy_key, present_state
from support.tpm_trace import CommandTrace
from tpm_mtls.cli import run
from tpm_mtls.identity import IdentityRecord, save_record
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.policy.counters import DEFAULT_COUNTER
from tpm_mtls.policy.document import PolicyAuthValue
from tpm_mtls.policy.files import policy_path
from tpm_mtls.policy.key_policy import read_public_area
from tpm_mtls.policy.signing import read_signer
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

KEY = KeyAlgorithm.ECC_P256

Command: TypeAlias = "Callable[..., Any]"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: SimulatedTpm) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)


@pytest.fixture
def policy(capsys: pytest.CaptureFixture[str], state_dir: Path) -> Command:
    """Runs ``tpm-mtls policy … --json``, which must end with ``status``: its answer, or its errors if it fails."""

    def command(verb: str, *arguments: str, status: int = 0, text: bool = False) -> Any:  # noqa: ANN401 - JSON
        folder = () if verb in {"record", "sign"} else ("--state-dir", str(state_dir))
        assert run(["policy", verb, *arguments, *folder, *(() if text else ("--json",))]) == status
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        if status:
            assert errors.startswith("tpm-mtls: error: ")
            assert "\ntpm-mtls: hint: " in errors
            return (output, errors) if output else errors
        return output if text else json.loads(output)

    return command


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


@pytest.fixture
def signed_key(tpm: SimulatedTpm, tmp_path: Path, operator: Operator) -> str:
    """A key that takes what the operator signs, and its counter."""
    with open_tpm(tpm.tcti) as opened:
        opened.counters.make(DEFAULT_COUNTER)
    make_policy_key(tpm, tmp_path / "key.pem", operator.authorize())
    return "key.pem"


def sign(policy: Command, version: int, *options: str) -> str:
    out = f"update-{version}.signed-policy.json"
    states = () if "--pcrs" in options or "--pcr-values" in options else ("--pcrs", "sha256:0,7")
    policy("sign", "--signer", "operator.key.pem", "--version", str(version), "--out", out, *states, *options)
    return out


@pytest.fixture
def trace_writes(
    tpm: SimulatedTpm, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Gives the commands since the last call that write the TPM's NV memory."""
    trace = CommandTrace(tpm, tmp_path_factory.mktemp("trace"), monkeypatch)
    monkeypatch.setenv("TPM_MTLS_TCTI", trace.tcti)

    def writes() -> list[str]:
        found = [name for name in trace.commands() if name.startswith(("NV_Inc", "NV_Wri", "NV_Def", "Evict"))]
        trace.restart()
        return found

    return writes


def counter(tpm: SimulatedTpm) -> int | None:
    with open_tpm(tpm.tcti) as opened:
        return opened.counters.read(DEFAULT_COUNTER)


# --- a fixed policy


def test_check_names_the_pcr_that_differs_and_ends_with_4(
    policy: Command, tpm: SimulatedTpm, tmp_path: Path, state_dir: Path
) -> None:
    make_policy_key(tpm, tmp_path / "key.pem", *present_state(tpm).pcrs)
    good = policy("check", "--key", "key.pem")
    assert (good["works"], good["obstacles"], good["needs_authorization"]) == (True, [], False)
    extend(tpm, 7)

    output, errors = policy("check", "--key", "key.pem", status=4)

    bad = json.loads(output)
    assert not bad["works"]
    [differs] = bad["obstacles"]
    now = differs.pop("now")
    words = f"PCR 7 (sha256) differs: {ZEROS} on 2026-11-22T03:00:00Z, {now} now"
    assert differs == {
        "text": words,
        "bank": "sha256",
        "pcr": 7,
        "then": ZEROS,
        "recorded": "2026-11-22T03:00:00Z",
    }
    assert f"the TPM would refuse to use key.pem: {words}" in errors
    assert errors.endswith(
        "tpm-mtls: hint: boot what it is bound to; if what has been booted is right, make a new key: "
        f"tpm-mtls keygen create --state-dir {state_dir} --pcrs sha256:0,2,7 --out new.key.pem\n"
    )
    lines = policy("check", "--key", "key.pem", status=4, text=True)[0].splitlines()
    assert lines[1].split() == ["works", "no"]
    assert lines[-1] == f"obstacles            {words}"


def test_check_of_a_key_without_policy_is_good(policy: Command, tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened, opened.srk.create_key(KEY) as key:
        opened.persist(key, 0x81000100)
    assert policy("check", "--key", "handle:0x81000100")["policy"] == "none"
    assert "can be used whatever was booted" in policy("show", "handle:0x81000100")["policy"]


def test_the_authorization_value_is_said_to_be_needed(policy: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_policy_key(tpm, tmp_path / "key.pem", *present_state(tpm).pcrs, PolicyAuthValue())
    assert policy("check", "--key", "key.pem")["needs_authorization"]


def test_a_missing_or_wrong_policy_is_told(policy: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    document = make_policy_key(tpm, tmp_path / "key.pem", *present_state(tpm).pcrs)
    path = policy_path(tmp_path, bytes.fromhex(document.name))
    text = path.read_text()
    assert policy("show", "key.pem")["digest"] == key_policy_digest(tmp_path)
    path.write_text(text.replace('"pcr"', '"other"'))
    assert "is no usable policy" in policy("check", "--key", "key.pem", status=5)
    path.unlink()
    assert f"the policy of the key {document.name} is missing: nothing in {tmp_path}" in policy(
        "check", "--key", "key.pem", status=5
    )
    other = make_policy_key(tpm, tmp_path / "other.pem", PolicyAuthValue())
    path.write_text(policy_path(tmp_path, bytes.fromhex(other.name)).read_text().replace(other.name, document.name))
    assert "it leads to another authPolicy" in policy("check", "--key", "key.pem", status=5)


def key_policy_digest(folder: Path) -> str:
    return read_public_area(KeyFile(folder / "key.pem"), None).policy.hex()


@pytest.mark.usefixtures("operator")
def test_a_fixed_policy_takes_no_signed_ones(policy: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_policy_key(tpm, tmp_path / "key.pem", *present_state(tpm).pcrs)
    out = sign(policy, 1)
    assert "the key's policy is fixed: it takes no signed ones" in policy("install", out, "--key", "key.pem", status=5)
    with open_tpm(tpm.tcti) as opened, opened.srk.create_key(KEY) as key:
        opened.persist(key, 0x81000100)
    assert "the key has no policy" in policy("install", out, "--key", "handle:0x81000100", status=5)


# --- signed policies


def test_recorded_on_a_device_signed_without_a_tpm(
    policy: Command, signed_key: str, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    recorded = policy("record", "--pcrs", "sha256:0,7", "--out", "state.json", "--description", "image 1")
    assert recorded["pcrs"][0]["values"] == {"0": ZEROS, "7": ZEROS}
    output, errors = policy("check", "--key", signed_key, status=4)
    assert "there is no policy signed by" in errors
    assert errors.splitlines()[-1] == (
        "tpm-mtls: hint: if what has been booted is right, have it signed: tpm-mtls policy record --out state.json, "
        "tpm-mtls policy sign --signer OPERATOR.key.pem --pcr-values state.json --version N --out "
        f"new.signed-policy.json, tpm-mtls policy install --state-dir {state_dir} new.signed-policy.json --key key.pem"
    )
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TPM_MTLS_TCTI", "device:/nowhere")
        out = sign(policy, 1, "--pcr-values", "state.json", "--description", "image 1")

    checked = policy("check", "--key", signed_key)  # it lies beside the key: that is enough

    assert (checked["works"], checked["version"]) == (True, 1)
    assert checked["signed_policy"].endswith(out)
    shown = policy("show", signed_key, text=True)
    assert "version 1 (image 1): PCRs 0, 7 (sha256) as on" in shown
    assert policy("show", "state.json")["description"] == "image 1"
    assert policy("show", out)["version"] == 1
    assert json.loads(output)["signed_policy"] is None


def test_several_states_are_alternatives(policy: Command, tpm: SimulatedTpm, signed_key: str) -> None:
    policy("record", "--pcrs", "sha256:0,7", "--out", "before.json")
    extend(tpm)
    sign(policy, 1, "--pcr-values", "before.json", "--pcrs", "sha256:0,7")
    assert policy("check", "--key", signed_key)["works"]
    tpm.restart()
    assert policy("check", "--key", signed_key)["works"]
    extend(tpm, 0)
    assert not json.loads(policy("check", "--key", signed_key, status=4)[0])["works"]


def test_install_retires_the_policies_before_it(policy: Command, tpm: SimulatedTpm, signed_key: str) -> None:
    """On a machine that was set back to the old state, the old policy lets the key be used no more."""
    old = sign(policy, 1)
    extend(tpm)
    new = sign(policy, 4)

    done = policy("install", new, "--key", signed_key)

    assert (done["changed"], done["holds"], done["counter_advanced"]) == (True, True, 3)
    assert counter(tpm) == 4
    tpm.restart()
    output, _ = policy("check", "--key", signed_key, status=4)
    assert not json.loads(output)["works"]
    assert "version 1 is older than version 4, which is installed" in policy(
        "install", old, "--key", signed_key, status=10
    )


def test_install_twice_changes_nothing(
    policy: Command, signed_key: str, tmp_path: Path, trace_writes: Callable[[], list[str]]
) -> None:
    (tmp_path / "mail").mkdir()
    out = sign(policy, 2, "--description", "image 2")
    elsewhere = (tmp_path / out).rename(tmp_path / "mail" / out)
    first = policy("install", str(elsewhere), "--key", signed_key)
    assert first["changed"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.json")}
    assert len(before) == 2
    trace_writes()

    second = policy("install", str(elsewhere), "--key", signed_key)

    assert (second["changed"], second["counter_advanced"], second["policy"]) == (False, 0, first["policy"])
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.json")} == before
    assert trace_writes() == []
    assert policy("install", str(elsewhere), "--key", signed_key, text=True).startswith(
        "version 2 is installed already"
    )


def test_before_the_update_is_booted_the_running_system_goes_on(
    policy: Command, tpm: SimulatedTpm, signed_key: str
) -> None:
    sign(policy, 1)
    policy("record", "--pcrs", "sha256:0,7", "--out", "now.json")
    extend(tpm)  # on the operator's own device
    out = sign(policy, 2)
    tpm.restart()

    text = policy("install", out, "--key", signed_key, text=True)

    assert text.splitlines()[1:] == [
        "it does not hold for what is running now; after the next boot, install it again to retire older ones"
    ]
    assert counter(tpm) == 1
    assert policy("check", "--key", signed_key)["version"] == 1
    extend(tpm)  # the update is booted
    assert policy("check", "--key", signed_key)["version"] == 2
    text = policy("install", out, "--key", signed_key, text=True)
    assert text.splitlines()[1:] == ["older versions are retired, for good: the counter stands at 2"]
    assert text.startswith("version 2 installed: ")
    again = policy("install", out, "--key", signed_key)
    assert (again["counter_advanced"], again["older_retired"]) == (0, True)


def test_an_older_image_is_told_the_ways_out(
    policy: Command, tpm: SimulatedTpm, signed_key: str, state_dir: Path
) -> None:
    """Its policy is retired, and the newest one is for another image: to install that again helps nobody."""
    sign(policy, 1)
    extend(tpm)
    new = sign(policy, 2)
    policy("install", new, "--key", signed_key)
    tpm.restart()

    text = policy("install", new, "--key", signed_key, text=True)
    _, errors = policy("check", "--key", signed_key, status=4)

    assert text.splitlines()[0].startswith("version 2 is installed already: ")
    assert text.splitlines()[1] == "older versions are retired, for good: the counter stands at 2"
    assert text.splitlines()[2] == (
        "it does not hold for what is running now: boot its image, or have this one signed with a higher version: "
        "tpm-mtls policy sign --version 3"
    )
    assert errors.splitlines()[-1] == (
        "tpm-mtls: hint: boot the image of the newest policy; if what has been booted is right, have it signed with a "
        "higher version: tpm-mtls policy record --pcrs sha256:0,7 --out state.json, tpm-mtls policy sign "
        "--signer OPERATOR.key.pem --pcr-values state.json --version 3 --out new.signed-policy.json, "
        f"tpm-mtls policy install --state-dir {state_dir} new.signed-policy.json --key key.pem"
    )
    policy("record", "--pcrs", "sha256:0,7", "--out", "state.json")
    policy(
        *("sign", "--signer", "operator.key.pem", "--pcr-values", "state.json", "--version", "3"),
        *("--out", "new.signed-policy.json"),
    )
    policy("install", "new.signed-policy.json", "--key", "key.pem")
    assert policy("check", "--key", signed_key)["version"] == 3


def test_install_says_what_another_file_of_ours_is(policy: Command, signed_key: str, tmp_path: Path) -> None:
    policy("record", "--pcrs", "sha256:0,7", "--out", "image 42.json")
    error, hint = policy("install", "image 42.json", "--key", signed_key, status=5).splitlines()
    assert error == "tpm-mtls: error: image 42.json is a record of PCR values, which nobody has signed yet"
    assert hint == (
        "tpm-mtls: hint: sign it first: tpm-mtls policy sign --signer OPERATOR.key.pem --pcr-values 'image 42.json' "
        "--version N --out new.signed-policy.json; then: tpm-mtls policy install --state-dir "
        f"{tmp_path / 'state'} new.signed-policy.json"
    )
    [own] = tmp_path.glob("000b*.policy.json")
    error, hint = policy("install", own.name, "--key", signed_key, status=5).splitlines()
    assert error == f"tpm-mtls: error: {own.name} is a key's own policy, not one that an operator signed"
    assert hint == (
        f"tpm-mtls: hint: see what it says: tpm-mtls policy show --state-dir {tmp_path / 'state'} {own.name}"
    )
    (tmp_path / "other.json").write_text("[]")
    assert "other.json is no usable policy" in policy("install", "other.json", "--key", signed_key, status=5)


def test_older_ones_can_be_retired_at_once(policy: Command, tpm: SimulatedTpm, signed_key: str) -> None:
    sign(policy, 1)
    extend(tpm)
    out = sign(policy, 2)
    tpm.restart()
    assert policy("install", out, "--key", signed_key, "--retire-now")["counter_advanced"] == 1
    policy("check", "--key", signed_key, status=4)


def test_install_refuses_what_is_not_right_and_writes_nothing(
    policy: Command, tpm: SimulatedTpm, signed_key: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()

    def install(*options: str, version: int = 2, key: str = "operator.key.pem") -> str:
        out = folder / f"{len(list(folder.iterdir()))}.signed-policy.json"
        states = ("--pcrs", "sha256:7", "--signer", key, "--version", str(version), "--out", str(out))
        policy("sign", *states, *options)
        before = sorted(tmp_path.iterdir())
        errors = policy("install", str(out), "--key", signed_key, status=5 if version == 2 else 10)
        assert sorted(tmp_path.iterdir()) == before
        return str(errors)

    other = tmp_path / "other"
    other.mkdir()
    Operator(other)
    assert "takes no policies of the signer" in install(key="other/operator.key.pem")
    assert "for 6d61696c" in install("--policy-ref", "mail")
    assert "needs the counter 0x01500200, which this TPM does not have" in install("--counter", "0x01500200")
    assert "version 0 is outdated: the counter 0x01500100 stands at 1" in install(version=0)
    assert "version 5000 is 4999 ahead of the counter" in install(version=5000)
    forged = json.loads((folder / "0.signed-policy.json").read_text())
    forged |= {"version": 9, "signer": read_signer(tmp_path / "operator.pem").name}
    forged["policy"] = forged["policy"][:1]
    (tmp_path / "forged.signed-policy.json").write_text(json.dumps(forged))
    good = folder / "good.signed-policy.json"
    policy("sign", "--pcrs", "sha256:7", "--signer", "operator.key.pem", "--version", "2", "--out", str(good))
    document = json.loads(good.read_text())
    good.write_text(json.dumps(document | {"signature": document["signature"][:-2] + "00"}))
    assert "the signature of" in policy("install", str(good), "--key", signed_key, status=5)
    assert counter(tpm) == 1
    good.write_text(json.dumps(document))
    policy("install", str(good), "--key", signed_key)  # that somebody claims to have a version 9 does not hinder it
    assert counter(tpm) == 2


def test_without_a_counter_only_the_files_tell_which_is_newer(
    policy: Command, tpm: SimulatedTpm, signed_key: str
) -> None:
    old = sign(policy, 1, "--counter", "none")
    new = sign(policy, 2, "--counter", "none")
    done = policy("install", new, "--key", signed_key)
    assert (done["counter_advanced"], done["holds"]) == (0, True)
    assert counter(tpm) == 1
    assert "older than version 2" in policy("install", old, "--key", signed_key, status=10)


def test_a_policy_in_the_identity_folder_is_found_for_its_key(
    policy: Command, tpm: SimulatedTpm, state_dir: Path, operator: Operator
) -> None:
    state_dir.mkdir()
    document = make_policy_key(tpm, state_dir / "device.key.pem", operator.authorize())
    with open_tpm(tpm.tcti) as opened:
        opened.counters.make(DEFAULT_COUNTER)
    record = IdentityRecord(
        device="sensor-17",
        key="device.key.pem",
        algorithm="ecc-p256",
        key_name=document.name,
        srk_name="",
        tpm_vendor="",
        tpm_firmware="",
        reset_count=0,
        ca_url="",
        enrolled_by="token",
    )
    save_record(state_dir, record)
    out = sign(policy, 1)
    installed = policy("install", out)
    assert installed["policy"].startswith(f"{state_dir}/")
    assert policy("check")["works"]
    assert policy("show")["name"] == document.name
    extend(tpm, 7)
    _, errors = policy("check", status=4)
    assert errors.endswith(f"tpm-mtls policy install --state-dir {state_dir} new.signed-policy.json\n")


def test_a_damaged_signed_policy_is_told_and_hinders_nothing(policy: Command, signed_key: str, tmp_path: Path) -> None:
    sign(policy, 1)
    (tmp_path / "x.signed-policy.json").write_text("{")
    checked = policy("check", "--key", signed_key)
    assert checked["works"]
    [damaged] = checked["damaged"]
    assert "x.signed-policy.json is no usable policy" in damaged


# --- options


def test_sign_says_what_is_missing(policy: Command, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("right horse\n")
    secret.chmod(0o600)
    Operator(tmp_path, passphrase=b"right horse")
    usual = ("sign", "--signer", "operator.key.pem", "--version", "1")
    out = ("--out", "a.signed-policy.json")
    source = ("--passphrase", f"file:{secret}")
    assert "0 states of the machine are given" in policy(*usual, *out, *source, status=2)
    assert "nobody would look for a policy in a.json" in policy(*usual, "--out", "a.json", *source, status=2)
    assert "is encrypted" in policy(*usual, *out, "--pcrs", "sha256:7", status=2)
    assert "not a selection of PCRs" in policy(*usual, *out, *source, "--pcrs", "7", status=2)
    assert "not an NV index" in policy(*usual, *out, *source, "--pcrs", "sha256:7", "--counter", "1", status=2)
    policy(*usual, *out, *source, "--pcrs", "sha256:7")
    assert "exists already" in policy(*usual, *out, *source, "--pcrs", "sha256:7", status=10)


def test_show_says_what_a_file_is(policy: Command, tpm: SimulatedTpm, tmp_path: Path) -> None:
    document = make_policy_key(tpm, tmp_path / "key.pem", *present_state(tpm).pcrs)
    shown = policy("show", f"{document.name}.policy.json")
    assert shown["name"] == document.name
    assert shown["policy"] == "PCRs 0, 2, 7 (sha256) as on 2026-11-22T03:00:00Z"
    (tmp_path / "x.json").write_text("{}")
    assert "is no recorded state" in policy("show", "x.json", status=5)
    Operator(tmp_path)
    assert "no complete TSS2 PRIVATE KEY block" in policy("show", "operator.pem", status=5)


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("record", "sign", "install", "show", "check"):
        assert run(["policy", verb, "--help"]) == 0
        assert f"Example: tpm-mtls policy {verb}" in capsys.readouterr().out
