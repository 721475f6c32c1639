"""``tpm-mtls tpm test``: what is proven, what is not, and that nothing stays in the TPM."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature

from support.attestation_keys import enroll_attestation_key
from support.noun_command import NounCommand
from support.policies import extend, make_policy_key, pcr_policy
from support.tpm_keys import make_key
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import CredentialError, EvidenceError
from tpm_mtls.identity import IdentityRecord, save_record
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm_tools.signing import signature_hash
from tpm_mtls.tpm_tools.trial import Trial, check_accepted, check_refused, check_same

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support.tpm import SimulatedTpm

COMMANDS = {"ecdh": 12, "ecdh-aes": 5, "encrypt": 9, "sign": 4, "quote": 7}
NAMES = tuple(COMMANDS)
_NEED_SRK = ("ecdh", "ecdh-aes", "encrypt")
_LOAD, _CREATE_LOADED, _SIGN, _QUOTE, _UNSEAL, _ZGEN = 0x157, 0x191, 0x15D, 0x158, 0x15E, 0x154
_WRITES = re.compile(r"EvictControl|NV_(?!Read)|PCR_(?!Read)|Clear|Change|Lock")


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> NounCommand:
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    return NounCommand("tpm", capsys)


@pytest.fixture
def with_srk(tpm: SimulatedTpm) -> SimulatedTpm:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    return tpm


def arguments(name: str, folder: Path) -> Sequence[object]:
    """A test of a device whose identity folder is ``folder``."""
    return ("test", name, "--state-dir", folder) if name in {"sign", "quote"} else ("test", name)


def save_identity(folder: Path, key: str, **changes: object) -> None:
    record = IdentityRecord(
        device="sensor-17",
        key=key,
        algorithm="ecc-p256",
        key_name="000b",
        srk_name="000b",
        tpm_vendor="IBM",
        tpm_firmware="1.2.3.4",
        reset_count=1,
        ca_url="https://ca.example",
        enrolled_by="token",
    )
    save_record(folder, msgspec.structs.replace(record, **changes))


@pytest.mark.parametrize("name", NAMES)
def test_each_test_says_what_was_proven_and_how_long_it_took(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path, name: str
) -> None:
    said = tool(*arguments(name, tmp_path))
    assert (said["test"], said["passed"], said["error"]) == (name, True, None)
    assert len(said["steps"]) >= 3
    assert all(step["proven"] and step["milliseconds"] >= 0 for step in said["steps"])
    assert said["milliseconds"] == pytest.approx(sum(step["milliseconds"] for step in said["steps"]), abs=0.01)

    lines = [line.split("\t") for line in tool.text(*arguments(name, tmp_path)).splitlines()]
    assert [line[0] for line in lines] == [step["proven"] for step in said["steps"]]
    assert all(re.fullmatch(r"\d+\.\d", line[1]) for line in lines)
    assert with_srk.handles("persistent") == ["0x81000001"]


@pytest.mark.parametrize("name", NAMES)
def test_no_test_writes_to_the_tpm_and_none_needs_many_commands(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trace = CommandTrace(with_srk, tmp_path, monkeypatch)
    tool(*arguments(name, tmp_path), "--tcti", trace.tcti)
    sent = trace.commands()
    assert [command for command in sent if _WRITES.search(command)] == []
    assert len(sent) == COMMANDS[name]
    loaded = [command for command in sent if command in {"CreateLoaded", "Load", "CreatePrimary"}]
    assert sent.count("FlushContext") >= len(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_a_tpm_without_a_storage_root_key_gets_none(
    tool: NounCommand, tpm: SimulatedTpm, tmp_path: Path, name: str
) -> None:
    if name in _NEED_SRK:
        said = tool(*arguments(name, tmp_path), status=10)
        assert said["passed"] is False
        assert "there is no storage root key at 0x81000001 yet" in said["error"]
        assert "hint: enrolling makes it" in tool.errors
        assert tool.text(*arguments(name, tmp_path), status=10) == ""
    else:
        assert tool(*arguments(name, tmp_path))["passed"]
    assert tpm.handles("persistent") == []


@pytest.mark.parametrize(
    ("name", "command", "error"),
    [
        ("ecdh", _ZGEN, "the answer is not the TPM's"),
        ("ecdh-aes", _ZGEN, "the answer is not the TPM's"),
        ("encrypt", _UNSEAL, "the answer is not the TPM's"),
        ("sign", _SIGN, "the TPM does not compute right: a wrong signature"),
        ("quote", _QUOTE, "the attestation key did not sign this attestation"),
    ],
)
def test_a_wrong_answer_fails_the_test_and_what_was_proven_before_is_told(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path, name: str, command: int, error: str
) -> None:
    proxy = TpmProxy(with_srk, tmp_path)
    proxy.spoil(command, -8 if name in {"sign", "quote"} else -1)  # the signature, before an empty session; the HMAC
    status = 5 if name in {"sign", "quote"} else 4
    said = tool(*arguments(name, tmp_path), "--tcti", proxy.tcti, status=status)
    assert said["passed"] is False
    assert error in said["error"]
    assert error in tool.errors
    assert len(said["steps"]) >= 1
    with_srk.flush()  # libtss2 sends nothing more after an answer that it cannot trust


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_is_told_and_leaves_nothing_behind(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path, name: str
) -> None:
    proxy = TpmProxy(with_srk, tmp_path)
    proxy.answer({"ecdh": _ZGEN, "ecdh-aes": _ZGEN, "encrypt": _UNSEAL, "sign": _SIGN, "quote": _QUOTE}[name], 0x101)
    said = tool(*arguments(name, tmp_path), "--tcti", proxy.tcti, status=4)
    assert "the TPM is in failure mode" in said["error"]
    assert with_srk.handles("transient") == []


def test_the_device_s_own_key_is_the_one_that_signs(tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(with_srk, tmp_path)
    save_identity(tmp_path, str(key.reference))
    said = tool(*arguments("sign", tmp_path))
    assert said["key"] == str(key.reference)
    assert said["steps"][0]["proven"] == f"the TPM can use the key {key.reference}"
    assert tool(*arguments("sign", tmp_path / "none"), "--key", key.reference)["key"] == str(key.reference)


@pytest.mark.usefixtures("with_srk")
def test_where_the_identity_is_a_software_key_the_tpm_signs_with_another(tool: NounCommand, tmp_path: Path) -> None:
    nothing = {"key_name": "", "srk_name": "", "tpm_vendor": "", "tpm_firmware": "", "reset_count": 0}
    save_identity(tmp_path, "device.key.pem", is_tpm=False, **nothing)
    assert tool(*arguments("sign", tmp_path))["key"] is None


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_keys_of_all_algorithms_sign(tool: NounCommand, tmp_path: Path, algorithm: KeyAlgorithm) -> None:
    said = tool(*arguments("sign", tmp_path), "--algorithm", algorithm)
    assert (said["key"], said["algorithm"]) == (None, algorithm)


def test_a_key_that_cannot_be_used_is_told(tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(with_srk.tcti) as opened:
        public = opened.srk.create_key(KeyAlgorithm.ECC_P256).public
    p521 = replace(public, algorithm="ecc-p521")
    with pytest.raises(CredentialError, match="ecc-p521, which is none of a TLS key"):
        signature_hash(p521)
    missing = tool(*arguments("sign", tmp_path), "--key", "handle:0x81000123", status=4)
    assert "the TPM has nothing at that handle" in missing["error"]
    assert "not a handle" in tool(*arguments("sign", tmp_path), "--key", "handle:1", status=5)
    (tmp_path / "identity.json").write_text("{")
    assert "identity.json is damaged" in tool(*arguments("sign", tmp_path), status=10)


def test_a_key_with_a_policy_signs_while_it_holds(tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path) -> None:
    key = tmp_path / "bound.key.pem"
    make_policy_key(with_srk, key, pcr_policy())
    assert tool(*arguments("sign", tmp_path / "none"), "--key", key)["passed"]
    extend(with_srk, 7)
    assert "policy is not satisfied" in tool(*arguments("sign", tmp_path), "--key", key, status=4)["error"]


def test_the_device_s_own_attestation_key_is_the_one_that_quotes(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path
) -> None:
    key = enroll_attestation_key(with_srk, tmp_path)
    said = tool(*arguments("quote", tmp_path))
    assert said["attestation_key"] == {"name": key.area.name.hex(), "of_the_device": True}
    assert tool("pcrs", "--state-dir", tmp_path)["quote"]["attestation_key"] == said["attestation_key"]
    assert said["clock"]["safe"] is True


@pytest.mark.usefixtures("with_srk")
def test_another_tpms_attestation_key_is_told(
    tool: NounCommand, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    enroll_attestation_key(make_tpm(), tmp_path)
    said = tool(*arguments("quote", tmp_path), status=4)
    assert "the key belongs to another TPM" in said["error"]


def test_tpm2_checkquote_verifies_the_quote_that_was_written(
    tool: NounCommand, with_srk: SimulatedTpm, tmp_path: Path
) -> None:
    extend(with_srk, 7)
    folder = tmp_path / "a quote"
    command = shlex.split(tool(*arguments("quote", tmp_path), "--out", folder)["check_with"])
    with_srk.tool(*command)
    pcrs = folder / "quote.pcrs"
    pcrs.write_bytes(pcrs.read_bytes().replace(b"\0" * 32, b"\1" * 32, 1))
    assert with_srk.tool(*command, check=False).returncode != 0

    assert "exists" in tool(*arguments("quote", tmp_path), "--out", folder, status=10)
    assert tool.text(*arguments("quote", tmp_path), "--out", tmp_path / "b").splitlines()[-1].startswith("tpm2_checkq")


def test_what_a_tpm_must_compute_is_compared() -> None:
    check_same(b"same", b"same", "two secrets")
    with pytest.raises(EvidenceError, match="the TPM does not compute right: two secrets"):
        check_same(b"same", b"other", "two secrets")
    check_accepted(lambda: None, InvalidSignature, "a signature")
    check_refused(lambda: int("x"), ValueError, "a letter")
    with pytest.raises(EvidenceError, match="the TPM accepts what it must refuse: a digit"):
        check_refused(lambda: int("1"), ValueError, "a digit")


def test_time_is_counted_for_what_was_proven() -> None:
    clock = iter((1.0, 1.25, 7.0, 7.5))
    trial = Trial("ecdh", lambda: next(clock))
    with trial.proving("one"):
        pass
    with pytest.raises(ZeroDivisionError), trial.proving("two"):
        _ = 1 // 0
    assert [(step.proven, step.milliseconds) for step in trial.steps] == [("one", 250.0)]


@pytest.mark.parametrize("name", NAMES)
def test_every_test_has_an_example_and_says_that_no_tpm_is_there(tool: NounCommand, tmp_path: Path, name: str) -> None:
    assert f"Example: tpm-mtls tpm test {name}" in tool.text("test", name, "--help")
    assert (
        "there is no TPM at /nowhere"
        in tool(*arguments(name, tmp_path), "--tcti", "device:/nowhere", status=3)["error"]
    )
