"""A TPM that breaks while the device runs: the right class of failure within one check, and none after repair."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.healthy_device import HANDLE, NOW, Device
from support.policies import Operator, extend, pcr_policy
from support.resource_manager import running_resource_manager
from support.tpm_commands import NULL, DirectTpm, sized
from support.tpm_keys import make_srk
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.attestation_key import load_attestation_key, save_attestation_key
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError, SimulatorError
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, RECORD, IdentityRecord, save_record
from tpm_mtls.policy.document import PolicyAuthValue, encode
from tpm_mtls.policy.files import policy_path
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls.tpm.sealing import Sealing
from tpm_mtls_agent.health import Authorizations, check_health
from tpm_mtls_relay.messages.commands import START_AUTH_SESSION
from tpm_mtls_relay.messages.wire import simple_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import Assertion

SIGN, UNSEAL, QUOTE, GET_TEST_RESULT, GET_CAPABILITY, CREATE = 0x15D, 0x15E, 0x158, 0x17C, 0x17A, 0x153
NO_CIPHER = bytes.fromhex("000010000b")  # an HMAC session, TPM_ALG_NULL, SHA-256
KEY_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
SRK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"


@pytest.fixture
def device(tpm: SimulatedTpm, tmp_path: Path) -> Device:
    return Device(tpm, tmp_path)


def outcomes(device: Device) -> dict[str, str]:
    return {each.name: each.outcome for each in device.check().checks}


def test_a_healthy_device_passes_all_checks_and_is_not_in_maintenance_mode(device: Device) -> None:
    report = device.check()
    assert not report.maintenance
    assert report.warnings == ()
    assert outcomes(device) == {"wrap": "passed", "quote": "passed", "sign": "passed"}
    assert (report.time, report.is_tpm) == (NOW, True)
    assert report.condition is not None
    assert report.condition.persistent == 2


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_the_signature_of_every_kind_of_key_is_verified(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: KeyAlgorithm
) -> None:
    device = Device(tpm, tmp_path, algorithm=algorithm, persistent=algorithm.is_ecc)
    assert outcomes(device)["sign"] == "passed"


# the commands, counted


def test_a_check_costs_19_commands_with_a_persistent_key_and_none_of_them_writes_nv(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(device.tpm, tmp_path, monkeypatch)
    state = device.tpm.simulator.state / "tpm2-00.permall"
    before = state.read_bytes()
    device.check(trace.tcti)
    assert trace.commands() == [
        *("GetTestResult", "GetCapability", "GetCapability", "GetCapability"),
        *("ReadPublic", "StartAuthSession", "Create", "Load", "StartAuthSession", "Unseal", "FlushContext"),
        *("Load", "Quote", "PCR_Read", "PCR_Read", "PCR_Read", "FlushContext"),
        *("ReadPublic", "Sign"),
    ]
    assert state.read_bytes() == before  # what the TPM keeps over a restart


def test_no_check_writes_nv_whatever_is_broken(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all, none makes the storage root key where it is missing."""
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    trace = CommandTrace(device.tpm, tmp_path, monkeypatch)
    state = device.tpm.simulator.state / "tpm2-00.permall"
    before = state.read_bytes()
    device.check(trace.tcti)
    (device.folder / RECORD).unlink()
    device.check(trace.tcti)
    assert {name.partition("=")[0] for name in trace.commands()} == {
        *("GetTestResult", "GetCapability", "ReadPublic", "Load"),
    }
    assert state.read_bytes() == before
    assert device.tpm.handles("persistent") == []


# broken, and mended


def test_a_simulator_that_is_killed_is_unavailable_until_it_is_back(device: Device) -> None:
    device.tpm.stop()
    assert set(device.failing()) == {"TpmUnavailable"}
    assert set(outcomes(device).values()) == {"failed"}
    device.tpm.simulator.start()
    assert device.failing() == {}


@pytest.mark.parametrize("damage", [lambda good: good[:64] + bytes(len(good) - 64), lambda good: good[:-1000]])
def test_a_tpm_with_a_damaged_state_is_unavailable_until_it_is_restored(
    device: Device, damage: Callable[[bytes], bytes]
) -> None:
    tpm, state = device.tpm, device.tpm.simulator.state / "tpm2-00.permall"
    tpm.stop()
    good = state.read_bytes()
    state.write_bytes(damage(good))
    with pytest.raises(SimulatorError):  # swtpm notices, and does not run with it
        tpm.simulator.start()
    assert set(device.failing()) == {"TpmUnavailable"}
    state.write_bytes(good)
    tpm.simulator.start()
    assert device.failing() == {}


def test_a_tpm_whose_memory_fails_while_it_runs_is_in_failure_mode(device: Device) -> None:
    tpm, state = device.tpm, device.tpm.simulator.state
    state.rename(state.with_name("gone"))
    tpm.tool("tpm2_nvdefine", "0x1500020", "-C", "o", "-s", "8", check=False)  # the write that fails
    found = device.failing()
    assert set(found) == {"SelfTestFailure", "EncFailure", "QuoteFailure", "SignFailure"}
    assert all("failure mode" in reason for reason in found.values())
    assert device.check().condition is None
    assert device.warned() == []
    state.with_name("gone").rename(state)
    tpm.restart()
    assert device.failing() == {}


def test_without_its_storage_root_key_nothing_is_wrapped_but_a_persistent_key_signs(device: Device) -> None:
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    found = device.failing()
    assert set(found) == {"EncFailure", "QuoteFailure"}
    assert "there is none now" in found["EncFailure"]
    with open_tpm(device.tpm.tcti) as opened:
        opened.srk.ensure()
    assert device.failing() == {}


def test_a_cleared_tpm_fails_in_every_way(device: Device) -> None:
    tpm, state = device.tpm, device.tpm.simulator.state / "tpm2-00.permall"
    tpm.stop()
    good = state.read_bytes()
    tpm.simulator.start()
    tpm.tool("tpm2_clear")
    assert set(device.failing()) == {"EncFailure", "QuoteFailure", "SignFailure"}
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()  # another seed, another key
    found = device.failing()
    assert set(found) == {"EncFailure", "QuoteFailure", "SignFailure"}
    assert device.record.srk_name in found["EncFailure"]
    tpm.stop()
    state.write_bytes(good)
    tpm.simulator.start()
    assert device.failing() == {}


def test_an_attestation_key_of_another_tpm_does_not_quote(
    device: Device, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    own = load_attestation_key(device.folder)
    assert own is not None
    (tmp_path / "other").mkdir()
    other = Device(make_tpm(), tmp_path / "other")
    shutil.copy(other.folder / ATTESTATION_KEY, device.folder)
    found = device.failing()
    assert set(found) == {"QuoteFailure"}
    assert "belongs to another TPM" in found["QuoteFailure"]
    save_attestation_key(device.folder, own)
    assert device.failing() == {}


def test_a_damaged_record_of_the_attestation_key_is_a_quote_failure(device: Device) -> None:
    path = device.folder / ATTESTATION_KEY
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    assert set(device.failing()) == {"QuoteFailure"}
    path.write_bytes(good)
    assert device.failing() == {}


def test_a_tls_key_that_is_gone_does_not_sign(device: Device) -> None:
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    found = device.failing()
    assert set(found) == {"SignFailure"}
    assert "nothing at that handle" in found["SignFailure"]
    device.persist_again()
    assert device.failing() == {}


@pytest.mark.parametrize("persistent", [True, False])
def test_a_key_bound_to_pcrs_does_not_sign_after_another_boot(
    tpm: SimulatedTpm, tmp_path: Path, *, persistent: bool
) -> None:
    device = Device(tpm, tmp_path, policy=[pcr_policy()], persistent=persistent)
    assert device.failing() == {}
    extend(tpm)
    found = device.failing()
    assert set(found) == {"SignFailure"}
    assert "PCR 7" in found["SignFailure"]
    tpm.restart()
    assert device.failing() == {}


def test_a_signed_policy_for_what_runs_now_mends_a_bound_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    device = Device(tpm, tmp_path, policy=[operator.authorize()])
    found = device.failing()
    assert set(found) == {"SignFailure"}
    assert "no policy signed" in found["SignFailure"]
    path = device.folder / "a.signed-policy.json"
    path.write_bytes(encode(operator.sign(pcr_policy())))
    assert device.failing() == {}
    extend(tpm)
    assert set(device.failing()) == {"SignFailure"}


def test_a_policy_that_is_missing_is_named(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path, policy=[pcr_policy()])
    path = policy_path(device.folder, device.public.name)
    good = path.read_bytes()
    path.unlink()
    assert "is missing" in device.failing()["SignFailure"]
    path.write_bytes(good)
    assert device.failing() == {}


def test_a_bound_key_signs_though_the_storage_root_key_is_gone(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """One failure class must not drag another one along."""
    device = Device(tpm, tmp_path, policy=[pcr_policy()])
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    assert set(device.failing()) == {"EncFailure", "QuoteFailure"}
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_lockout_keeps_a_key_with_an_authorization_value_from_signing(
    tpm: SimulatedTpm, tmp_path: Path, *, persistent: bool
) -> None:
    device = Device(tpm, tmp_path, authorization=Secret(b"right"), persistent=persistent)
    assert device.failing() == {}
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "-n", "2", "-t", "1000", "-l", "1000")
    with (
        open_tpm(tpm.tcti) as opened,
        opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"a")) as made,
        opened.load(SRK_HANDLE, made.public, made.private, Secret(b"b")) as wrong,
    ):
        for _ in range(2):
            with pytest.raises(AuthorizationError):
                opened.sign(wrong, bytes(32), hash_name="sha256")
    assert set(device.failing()) == {"SignFailure"}
    assert device.warned() == ["Lockout"]
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    assert device.failing() == {}


def test_a_tpm_without_a_free_slot_is_told_with_the_reason(device: Device) -> None:
    folder = device.tpm.simulator.folder
    for name in "abc":
        device.tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", name, cwd=folder)
    found = device.failing()
    assert set(found) == {"EncFailure", "QuoteFailure", "SignFailure"}  # a persistent key needs one while it signs
    assert all("object slots are exhausted" in reason for reason in found.values())
    assert device.warned() == ["LeakedObjects"]
    device.tpm.flush()
    assert device.failing() == {}


def test_a_tpm_without_a_free_session_cannot_wrap(device: Device) -> None:
    tpm = DirectTpm(device.tpm)
    for _ in range(3):
        tpm(simple_command(START_AUTH_SESSION, sized(bytes(16)) + sized(b"") + NO_CIPHER, handles=(NULL, NULL)))
    found = device.failing()
    assert set(found) == {"EncFailure"}
    assert "session slots are exhausted" in found["EncFailure"]
    assert device.warned() == ["LeakedSessions"]
    device.tpm.tool("tpm2_flushcontext", "--loaded-session")
    assert device.failing() == {}


def test_a_session_that_somebody_saved_is_a_warning(device: Device) -> None:
    device.tpm.tool("tpm2_startauthsession", "-S", "saved", cwd=device.tpm.simulator.folder)
    assert device.failing() == {}
    assert device.warned() == ["LeakedSessions"]
    device.tpm.tool("tpm2_flushcontext", "--saved-session")
    assert device.warned() == []


def test_nv_memory_with_room_for_one_more_key_is_a_warning(device: Device) -> None:
    """For NV indices it keeps no room: then it has what it keeps for seven keys."""
    index = 0x1500020
    while device.tpm.tool("tpm2_nvdefine", f"{index:#x}", "-C", "o", "-s", "2000", check=False).returncode == 0:
        index += 1
    assert device.warned() == []
    with open_tpm(device.tpm.tcti) as opened, opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
        handle = 0x81000200
        while (condition := opened.capabilities.condition()).persistent_available >= 2:
            opened.persist(key, handle)
            handle += 1
    assert condition.persistent_available == 1
    assert device.failing() == {}
    assert device.warned() == ["NvNearlyFull"]
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000200")
    assert device.warned() == []


def test_a_certificate_of_another_key_is_a_sign_failure(device: Device) -> None:
    good = (device.folder / CERTIFICATE).read_bytes()
    with open_tpm(device.tpm.tcti) as opened, opened.srk.create_key(KeyAlgorithm.ECC_P256) as other:
        device.certify(other.public.spki or b"")
    assert "does not belong to the key" in device.failing()["SignFailure"]
    (device.folder / CERTIFICATE).unlink()
    assert "cannot read" in device.failing()["SignFailure"]
    (device.folder / CERTIFICATE).write_bytes(good)
    assert device.failing() == {}


def test_a_damaged_identity_is_a_sign_failure_and_hides_nothing_else(device: Device) -> None:
    path = device.folder / RECORD
    good = path.read_bytes()
    path.write_bytes(b"{")
    assert set(device.failing()) == {"SignFailure"}
    path.write_bytes(good)
    assert device.failing() == {}


# authorization values


def test_a_key_whose_authorization_value_is_not_known_is_not_tried(tpm: SimulatedTpm, tmp_path: Path) -> None:
    for persistent in (True, False):
        (root := tmp_path / str(persistent)).mkdir()
        device = Device(tpm, root, authorization=Secret(b"right"), persistent=persistent)
        device.authorizations = Authorizations()
        assert outcomes(device) == {"wrap": "passed", "quote": "passed", "sign": "skipped"}
        assert device.warned() == ["SignUnchecked"]
        condition = device.check().condition
        assert condition is not None
        assert condition.lockout_counter == 0
        device.failing()


def test_a_wrong_authorization_value_is_told_and_never_locks_the_tpm(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path, authorization=Secret(b"right"))
    right = device.authorizations
    device.authorizations = Authorizations(key=Secret(b"wrong"))
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "-n", "4", "-t", "1000", "-l", "1000")
    found = [device.failing() for _ in range(6)]
    assert all(set(each) == {"SignFailure"} for each in found)
    assert "wrong authorization value" in found[0]["SignFailure"]
    assert "is not tried: 2 wrong ones of 4" in found[-1]["SignFailure"]
    condition = device.check().condition
    assert condition is not None
    assert (condition.lockout_counter, condition.locked_out) == (2, False)
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    device.authorizations = right
    assert device.failing() == {}


@pytest.mark.parametrize("persistent", [True, False])
def test_a_policy_that_asks_for_the_authorization_value_gets_it(
    tpm: SimulatedTpm, tmp_path: Path, *, persistent: bool
) -> None:
    policy: list[Assertion] = [pcr_policy(), PolicyAuthValue()]
    device = Device(tpm, tmp_path, policy=policy, authorization=Secret(b"right"), persistent=persistent)
    known = device.authorizations
    assert outcomes(device)["sign"] == "passed"
    device.authorizations = Authorizations()
    assert outcomes(device)["sign"] == "skipped"
    device.authorizations = Authorizations(key=Secret(b"wrong"))
    assert "wrong authorization value" in device.failing()["SignFailure"]
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    device.authorizations = known
    assert device.failing() == {}


def test_a_storage_root_key_with_a_password_is_used_with_it(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_srk(tpm, tmp_path)
    device = Device(tpm, tmp_path)
    shape = ("-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb", "-p", "secret", "-c", "new.ctx")
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    tpm.tool("tpm2_createprimary", *shape, "-a", SRK_ATTRIBUTES, cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "new.ctx", "0x81000001", cwd=tmp_path)
    tpm.flush()
    assert set(device.failing()) == {"EncFailure", "QuoteFailure"}
    device.authorizations = Authorizations(srk=Secret(b"secret"))
    assert device.failing() == {}


def test_a_key_of_another_algorithm_than_tls_keys_have_is_named(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    blobs = ("-u", "k.pub", "-r", "k.priv")
    tpm.tool("tpm2_create", "-C", "0x81000001", "-G", "rsa1024", "-a", KEY_ATTRIBUTES, *blobs, cwd=tmp_path)
    tpm.tool("tpm2_load", "-C", "0x81000001", *blobs, "-c", "k.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "k.ctx", f"{HANDLE:#x}", cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        device.certify(opened.read_public(HANDLE).public.spki or b"")
    assert "no algorithm of a TLS key" in device.failing()["SignFailure"]


# killed


def test_what_a_killed_check_left_in_the_tpm_the_next_one_flushes(device: Device, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from tpm_mtls_agent.health import check_health;"
        "check_health(sys.argv[1], pathlib.Path(sys.argv[2]), ledger=pathlib.Path(sys.argv[3]))"
    )
    ledger = str(device.ledger)
    for command in (UNSEAL, QUOTE):
        proxy = TpmProxy(device.tpm, tmp_path)
        proxy.signal_after(command, signal.SIGKILL)
        killed = subprocess.run([sys.executable, "-c", program, proxy.tcti, str(device.folder), ledger], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(device.tpm.handles("transient")) == 1
        assert device.failing() == {}
        assert device.tpm.handles("transient") == []


# a TPM that lies


@pytest.mark.parametrize(
    ("command", "position", "kind", "why"),
    [
        (UNSEAL, -20, "EncFailure", "the answer is not the TPM's"),
        (QUOTE, -6, "QuoteFailure", "did not sign this"),
        (SIGN, -10, "SignFailure", "does not verify"),
        (GET_TEST_RESULT, -1, "SelfTestFailure", "self-test failed"),
    ],
)
def test_an_answer_with_one_wrong_bit_is_the_failure_of_its_check_alone(
    device: Device, tmp_path: Path, command: int, position: int, kind: str, why: str
) -> None:
    proxy = TpmProxy(device.tpm, tmp_path)
    assert device.failing(proxy.tcti) == {}
    proxy.spoil(command, position)
    found = device.failing(proxy.tcti)
    assert set(found) == {kind}
    assert why in found[kind]
    assert device.failing() == {}


def test_other_data_than_was_wrapped_is_noticed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrong bit on the bus leads there, the session's HMAC would break; a broken TPM may."""
    monkeypatch.setattr(Sealing, "unseal", lambda *_: bytes(32))
    assert "gave back other data" in device.failing()["EncFailure"]


def test_a_tpm_in_failure_mode_fails_in_every_way(device: Device, tmp_path: Path) -> None:
    proxy = TpmProxy(device.tpm, tmp_path)
    for command in (GET_CAPABILITY, CREATE, QUOTE, SIGN):
        proxy.answer(command, 0x101)
    found = device.failing(proxy.tcti)
    assert set(found) == {"SelfTestFailure", "EncFailure", "QuoteFailure", "SignFailure"}
    assert "failure mode" in found["EncFailure"]


def test_behind_a_resource_manager_others_sessions_and_slots_are_no_warning(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_resource_manager(device.tpm, tmp_path / "manager", monkeypatch) as tcti:
        saved = str(tmp_path / "saved")
        subprocess.run(["tpm2_startauthsession", "-T", tcti, "-S", saved], check=True)
        report = device.check(tcti)
        subprocess.run(["tpm2_flushcontext", "-T", tcti, saved], check=True)
    assert (report.failures, report.warnings) == ((), ())
    assert [each.outcome for each in report.checks] == ["passed"] * 3


# no identity, or a software key


def test_without_an_identity_only_wrapping_is_checked(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    report = check_health(tpm.tcti, tmp_path)
    assert report.failures == ()
    assert [(each.name, each.outcome) for each in report.checks] == [
        ("wrap", "passed"),
        ("quote", "skipped"),
        ("sign", "skipped"),
    ]


def test_without_a_storage_root_key_and_an_identity_none_is_made(tpm: SimulatedTpm, tmp_path: Path) -> None:
    (failure,) = check_health(tpm.tcti, tmp_path).failures
    assert failure.kind == "EncFailure"
    assert "no storage root key" in failure.reason
    assert tpm.handles("persistent") == []


def test_a_software_identity_has_no_tpm_to_check(tmp_path: Path) -> None:
    record = IdentityRecord(
        is_tpm=False,
        device="sensor-18",
        key=KEY,
        algorithm="ecc-p256",
        ca_url="https://ca.example",
        enrolled_by="token",
    )
    save_record(tmp_path, record)
    report = check_health("swtpm:port=1", tmp_path, now=lambda: NOW)
    assert (report.is_tpm, report.failures, report.checks, report.condition) == (False, (), (), None)


def test_a_tcti_that_is_none_is_unavailable(device: Device) -> None:
    assert set(device.failing("nonsense:x")) == {"TpmUnavailable"}
