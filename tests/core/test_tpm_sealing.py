"""Sealing: only this TPM gives the data back, only as the policy says, and its bus carries no secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.policies import Operator, extend, pcr_policy, present_state
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    ForeignKeyError,
    PemError,
    PolicyError,
    PolicyRefusedError,
    TpmLockoutError,
    TpmRefusedError,
    UsageError,
)
from tpm_mtls.policy.counters import not_beyond
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr
from tpm_mtls.policy.files import FoundPolicy
from tpm_mtls.structures import Attribute, SealedObject, read_sealed_files
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import Assertion, SignedPolicy

DATA = b"the launch code is 0000"
VALUE = Secret(b"an authorization value")
RETRY = "=0x922"  # TPM_RC_RETRY: the TPM has its NV memory written first; libtss2 repeats the command
COUNTER = 0x01500100
POLICY_PCR, POLICY_AUTH_VALUE, POLICY_AUTHORIZE, LOAD_EXTERNAL, UNSEAL = 0x17F, 0x16B, 0x16A, 0x167, 0x15E
PRESENT, OTHER = pcr_policy(), pcr_policy({7: "11" * 32})


class Traced:
    """A TPM whose commands are written down."""

    def __init__(self, tpm: SimulatedTpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._trace = CommandTrace(tpm, folder, monkeypatch)
        with open_tpm(tpm.tcti) as opened:
            self._srk = opened.srk.ensure()

    def seal(self, policy: Sequence[Assertion] = (), authorization: Secret | None = None) -> SealedObject:
        self._trace.restart()
        with open_tpm(self._trace.tcti) as opened:
            opened.srk.assume(self._srk)
            return opened.sealing.seal(DATA, policy=policy, authorization=authorization)

    def unseal(
        self,
        sealed: SealedObject,
        policy: Sequence[Assertion] = (),
        signed: Sequence[SignedPolicy] = (),
        authorization: Secret | None = None,
    ) -> bytes:
        self._trace.restart()
        found = [FoundPolicy(Path(f"{number}.signed-policy.json"), each) for number, each in enumerate(signed)]
        with open_tpm(self._trace.tcti) as opened:
            opened.srk.assume(self._srk)
            return opened.sealing.unseal(sealed, policy=policy, signed_policies=found, authorization=authorization)

    @property
    def commands(self) -> list[str]:
        return [each for each in self._trace.commands() if not each.endswith(RETRY)]

    def captured(self) -> bytes:
        return self._trace.captured()


@pytest.fixture
def traced(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traced:
    return Traced(tpm, tmp_path, monkeypatch)


@pytest.mark.parametrize("size", [1, 127, 128])
def test_what_was_sealed_is_unsealed(tpm: SimulatedTpm, size: int) -> None:
    data = os.urandom(size)
    with open_tpm(tpm.tcti) as opened:
        sealed = opened.sealing.seal(data)
        assert opened.sealing.unseal(sealed) == data


@pytest.mark.parametrize("size", [0, 129])
def test_a_tpm_seals_1_to_128_bytes(tpm: SimulatedTpm, size: int) -> None:
    with open_tpm(tpm.tcti) as opened, pytest.raises(UsageError, match=f"{size} bytes cannot be sealed"):
        opened.sealing.seal(bytes(size))


def test_few_commands_are_sent(traced: Traced) -> None:
    sealed = traced.seal()
    assert traced.commands == ["StartAuthSession", "Create"]
    assert traced.unseal(sealed) == DATA
    assert traced.commands == ["Load", "StartAuthSession", "Unseal", "FlushContext"]

    sealed = traced.seal((PRESENT,))
    assert traced.unseal(sealed, (PRESENT,)) == DATA
    assert traced.commands == ["Load", "StartAuthSession", "PolicyPCR", "Unseal", "FlushContext"]


@pytest.mark.parametrize("policy", [(), (PRESENT,), (PRESENT, PolicyAuthValue())])
def test_the_bus_carries_neither_the_data_nor_the_authorization_value(
    traced: Traced, policy: tuple[Assertion, ...]
) -> None:
    value = VALUE if len(policy) != 1 else None
    sealed = traced.seal(policy, value)
    for secret in (DATA, VALUE.value):
        assert secret not in traced.captured()
    assert traced.unseal(sealed, policy, authorization=value) == DATA
    for secret in (DATA, VALUE.value):
        assert secret not in traced.captured()


def test_a_bus_without_such_sessions_carries_both(tpm: SimulatedTpm, traced: Traced, tmp_path: Path) -> None:
    """What the test above looks for is there to be found."""
    capture = tmp_path / "tools.pcapng"
    (tmp_path / "secret").write_bytes(DATA)
    tool = (
        "tpm2_create",
        "-T",
        f"pcap:{tpm.tcti}",
        "-C",
        f"{SRK_HANDLE:#x}",
        "-i",
        "secret",
        "-u",
        "pub",
        "-r",
        "priv",
    )
    tpm.tool("env", f"TCTI_PCAP_FILE={capture}", *tool, "-p", VALUE.value.decode(), cwd=tmp_path)
    tpm.flush()
    assert DATA in capture.read_bytes()
    assert VALUE.value in capture.read_bytes()
    assert traced.unseal(traced.seal()) == DATA


def test_what_it_is_made_with_keeps_it_where_it_is(traced: Traced) -> None:
    fixed = Attribute.FIXEDTPM | Attribute.FIXEDPARENT
    assert traced.seal().public.attributes == fixed | Attribute.USERWITHAUTH | Attribute.NODA
    assert traced.seal((), VALUE).public.attributes == fixed | Attribute.USERWITHAUTH
    assert traced.seal((PRESENT,)).public.attributes == fixed | Attribute.NODA


@pytest.mark.parametrize("value", [b"x", b"x" * 32, b"ends in zeros\0\0"])
def test_an_authorization_value_is_needed_again(traced: Traced, value: bytes) -> None:
    sealed = traced.seal((), Secret(value))
    assert traced.unseal(sealed, authorization=Secret(value)) == DATA
    with pytest.raises(AuthorizationError, match="cannot unseal the data: wrong authorization value") as refusal:
        traced.unseal(sealed, authorization=Secret(b"wrong"))
    assert refusal.value.rc == 0x98E
    assert "--auth" in refusal.value.hint
    with pytest.raises(AuthorizationError):
        traced.unseal(sealed)


def test_many_wrong_values_lock_it(tpm: SimulatedTpm, traced: Traced) -> None:
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=2", "--recovery-time=1000")
    sealed = traced.seal((), VALUE)
    assert traced.unseal(sealed, authorization=VALUE) == DATA
    for _ in range(2):
        with pytest.raises(AuthorizationError):
            traced.unseal(sealed, authorization=Secret(b"wrong"))
    with pytest.raises(TpmLockoutError, match="dictionary-attack lockout") as refusal:
        traced.unseal(sealed, authorization=VALUE)
    assert refusal.value.rc == 0x921
    assert traced.unseal(traced.seal()) == DATA  # what has no value is not locked
    tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
    assert traced.unseal(sealed, authorization=VALUE) == DATA


def test_after_something_else_was_booted_it_stays_sealed_and_says_what(tpm: SimulatedTpm, traced: Traced) -> None:
    sealed = traced.seal((PRESENT,))
    extend(tpm)
    now = present_state(tpm, "sha256:7").pcrs[0].values[7]
    with pytest.raises(
        PolicyRefusedError, match=rf"0x99d\): PCR 7 \(sha256\) differs: 0{{64}} on .*, {now} now"
    ) as refusal:
        traced.unseal(sealed, (PRESENT,))
    assert refusal.value.rc == 0x99D
    assert "tpm-mtls pcr diff" in refusal.value.hint
    tpm.restart()
    assert traced.unseal(sealed, (PRESENT,)) == DATA


def test_a_bank_that_the_tpm_does_not_keep_is_told(tpm: SimulatedTpm, traced: Traced) -> None:
    tpm.tool("tpm2_pcrallocate", "-P", "", "sha1:none+sha256:all+sha384:none+sha512:none")
    tpm.restart()
    sha1 = msgspec.structs.replace(PRESENT, bank="sha1")
    sealed = traced.seal((sha1,))
    with pytest.raises(PolicyRefusedError, match="this TPM keeps no bank sha1"):
        traced.unseal(sealed, (sha1,))


def test_policy_and_authorization_value_are_both_needed(tpm: SimulatedTpm, traced: Traced) -> None:
    policy = (PRESENT, PolicyAuthValue())
    sealed = traced.seal(policy, VALUE)
    assert traced.unseal(sealed, policy, authorization=VALUE) == DATA
    assert traced.commands == [
        *("Load", "StartAuthSession", "PolicyPCR", "PolicyAuthValue", "Unseal", "FlushContext"),
    ]
    with pytest.raises(AuthorizationError):
        traced.unseal(sealed, policy, authorization=Secret(b"wrong"))
    extend(tpm)
    with pytest.raises(PolicyRefusedError):
        traced.unseal(sealed, policy, authorization=VALUE)


def test_an_authorization_value_that_would_not_count_is_refused(traced: Traced) -> None:
    with pytest.raises(UsageError, match="the policy takes no authorization value"):
        traced.seal((PRESENT,), VALUE)
    with pytest.raises(UsageError, match="the policy takes an authorization value, and there is none"):
        traced.seal((PRESENT, PolicyAuthValue()))


def test_one_of_several_states_will_do(tpm: SimulatedTpm, traced: Traced) -> None:
    policy = (PolicyOr(branches=((OTHER,), (PRESENT,))),)
    sealed = traced.seal(policy)
    assert traced.unseal(sealed, policy) == DATA
    assert traced.commands == ["Load", "StartAuthSession", "PolicyPCR", "PolicyOR", "Unseal", "FlushContext"]
    extend(tpm)
    with pytest.raises(PolicyRefusedError, match=r"PCR 7 \(sha256\) differs") as refusal:
        traced.unseal(sealed, policy)
    assert refusal.value.rc == 0x99D


def test_a_branch_without_the_authorization_value_gives_the_data_all_the_same(traced: Traced) -> None:
    """The object has a value, on which encryption would depend, and the branch that holds does not ask for it."""
    elsewhere = pcr_policy({4: "33" * 32})
    policy = (PolicyOr(branches=((elsewhere, PolicyAuthValue()), (PRESENT,))),)
    sealed = traced.seal(policy, VALUE)
    assert traced.unseal(sealed, policy) == DATA
    assert traced.commands == [
        *("Load", "StartAuthSession", "PolicyPCR", "PolicyAuthValue", "PolicyOR=0x1c4", "FlushContext"),
        *("StartAuthSession", "PolicyPCR", "PolicyOR", "StartAuthSession", "Unseal", "FlushContext"),
    ]
    assert traced.unseal(sealed, policy, authorization=Secret(b"wrong")) == DATA


def test_a_signed_policy_opens_it_after_an_update(tpm: SimulatedTpm, traced: Traced, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    policy = (operator.authorize(b"disk"),)
    sealed = traced.seal(policy)
    first = operator.sign(PRESENT, policy_ref=b"disk")
    assert traced.unseal(sealed, policy, [first]) == DATA
    assert traced.commands == [
        *("Load", "StartAuthSession", "PolicyPCR", "LoadExternal", "VerifySignature", "FlushContext"),
        *("PolicyAuthorize", "Unseal", "FlushContext"),
    ]
    extend(tpm)
    with pytest.raises(PolicyRefusedError, match=r"PCR 7 \(sha256\) differs"):
        traced.unseal(sealed, policy, [first])
    second = operator.sign(*present_state(tpm, "sha256:7").pcrs, policy_ref=b"disk", version=2)
    assert traced.unseal(sealed, policy, [first, second]) == DATA
    assert "PolicyPCR=0x1c4" in traced.commands
    assert traced.unseal(sealed, policy, [second, first]) == DATA


def test_a_signature_is_verified_once_for_a_connection_and_again_after_a_clear(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = Operator(tmp_path)
    policy = (operator.authorize(),)
    signed = [FoundPolicy(tmp_path, operator.sign(PRESENT))]
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        sealed = opened.sealing.seal(DATA, policy=policy)
        for _ in range(3):
            assert opened.sealing.unseal(sealed, policy=policy, signed_policies=signed) == DATA
        assert trace.commands().count("VerifySignature") == 1
        tpm.tool("tpm2_clear", "-c", "p")
        opened.sessions.expected = None
        opened.srk.read_again()
        sealed = opened.sealing.seal(DATA, policy=policy)
        assert opened.sealing.unseal(sealed, policy=policy, signed_policies=signed) == DATA
        assert trace.commands().count("PolicyAuthorize=0x4c4") == 1
        assert trace.commands().count("VerifySignature") == 2


def test_a_policy_signed_by_somebody_else_does_not_count(traced: Traced, tmp_path: Path) -> None:
    operator, stranger = Operator(tmp_path), Operator(tmp_path)
    policy = (operator.authorize(),)
    sealed = traced.seal(policy)
    with pytest.raises(PolicyError, match="there is no policy signed by"):
        traced.unseal(sealed, policy, [stranger.sign(PRESENT), operator.sign(PRESENT, policy_ref=b"other")])


def test_a_retired_signed_policy_opens_nothing(tpm: SimulatedTpm, traced: Traced, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    policy = (operator.authorize(), PolicyAuthValue())
    sealed = traced.seal(policy, VALUE)
    with open_tpm(tpm.tcti) as opened:
        version = opened.counters.make(COUNTER)
    old = operator.sign(PRESENT, not_beyond(COUNTER, version), version=version)
    assert traced.unseal(sealed, policy, [old], VALUE) == DATA
    with open_tpm(tpm.tcti) as opened:
        opened.counters.increment(COUNTER)
    with pytest.raises(PolicyRefusedError, match=f"version {version} is outdated: the counter 0x01500100 stands at"):
        traced.unseal(sealed, policy, [old], VALUE)
    new = operator.sign(PRESENT, not_beyond(COUNTER, version + 1), version=version + 1)
    assert traced.unseal(sealed, policy, [new, old], VALUE) == DATA
    with open_tpm(tpm.tcti) as opened:
        opened.nv.remove(COUNTER)
    with pytest.raises(PolicyRefusedError, match="the counter 0x01500100 is not in this TPM"):
        traced.unseal(sealed, policy, [new, old], VALUE)


def test_not_more_than_some_tickets_are_kept(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpm_mtls.tpm.approvals.TICKETS_LIMIT", 1)
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        for operator in (Operator(tmp_path), Operator(tmp_path)):
            policy, signed = (operator.authorize(),), [FoundPolicy(tmp_path, operator.sign(PRESENT))]
            sealed = opened.sealing.seal(DATA, policy=policy)
            for _ in range(2):
                assert opened.sealing.unseal(sealed, policy=policy, signed_policies=signed) == DATA
    assert trace.commands().count("VerifySignature") == 2


@pytest.mark.parametrize("command", [POLICY_PCR, POLICY_AUTH_VALUE, POLICY_AUTHORIZE, LOAD_EXTERNAL, UNSEAL])
def test_a_tpm_that_fails_in_the_midst_is_not_taken_for_a_policy_that_does_not_hold(
    tpm: SimulatedTpm, tmp_path: Path, command: int
) -> None:
    """Nothing is left, either, which the fixture looks for."""
    operator = Operator(tmp_path)
    policy, signed = (operator.authorize(), PolicyAuthValue()), [FoundPolicy(tmp_path, operator.sign(PRESENT))]
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(command, 0x101)
    with open_tpm(proxy.tcti) as opened:
        sealed = opened.sealing.seal(DATA, policy=policy, authorization=VALUE)
        with pytest.raises(TpmRefusedError, match="the TPM is in failure mode") as refusal:
            opened.sealing.unseal(sealed, policy=policy, signed_policies=signed, authorization=VALUE)
    assert type(refusal.value) is TpmRefusedError


def test_an_approval_that_the_tpm_does_not_take_is_a_policy_that_does_not_hold(
    tpm: SimulatedTpm, tmp_path: Path
) -> None:
    operator = Operator(tmp_path)
    policy, signed = (operator.authorize(),), [FoundPolicy(tmp_path, operator.sign(PRESENT))]
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(POLICY_AUTHORIZE, 0x4C4)
    with open_tpm(proxy.tcti) as opened:
        sealed = opened.sealing.seal(DATA, policy=policy)
        with pytest.raises(PolicyRefusedError, match="its policy is not satisfied"):
            opened.sealing.unseal(sealed, policy=policy, signed_policies=signed)


def test_another_policy_or_none_is_refused_before_the_tpm_is_asked(traced: Traced) -> None:
    sealed = traced.seal((PRESENT,))
    with pytest.raises(PolicyError, match="the policy is not the one that the data was sealed with"):
        traced.unseal(sealed, (OTHER,))
    with pytest.raises(PolicyError, match="the data is sealed with a policy, which is missing"):
        traced.unseal(sealed)
    with pytest.raises(PolicyError, match="the policy is not the one"):
        traced.unseal(traced.seal(), (PRESENT,))


def test_only_the_tpm_that_sealed_it_unseals_it(tpm: SimulatedTpm, make_tpm: Callable[[], SimulatedTpm]) -> None:
    with open_tpm(make_tpm().tcti) as elsewhere:
        sealed = elsewhere.sealing.seal(DATA)
    with open_tpm(tpm.tcti) as opened:
        with pytest.raises(ForeignKeyError, match="another TPM sealed it, or this one was cleared since") as refusal:
            opened.sealing.unseal(sealed)
        assert refusal.value.rc == 0x1DF
        assert "keep it until you know" in refusal.value.hint


def test_after_a_clear_it_is_lost(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        sealed = opened.sealing.seal(DATA)
    tpm.tool("tpm2_clear", "-c", "p")
    with open_tpm(tpm.tcti) as opened, pytest.raises(ForeignKeyError, match="or this one was cleared since"):
        opened.sealing.unseal(sealed)


@pytest.mark.parametrize("position", [2, 40, -1])
def test_a_changed_private_part_is_refused(traced: Traced, position: int) -> None:
    sealed = traced.seal()
    private = bytearray(sealed.private)
    private[position] ^= 1
    with pytest.raises(ForeignKeyError, match="or it is damaged"):
        traced.unseal(SealedObject(sealed.public, bytes(private)))
    with pytest.raises(PemError, match="the sealed data is damaged"):
        traced.unseal(SealedObject(sealed.public, sealed.private[:20]))


def test_a_key_is_not_unsealed(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_attestation_key()
        with pytest.raises(PemError, match="no sealed data, but a key"):
            opened.sealing.unseal(SealedObject(key.public, key.private))


@pytest.mark.parametrize("policy", [(), (PRESENT,)])
def test_tpm2_tools_unseal_what_was_sealed_here(
    tpm: SimulatedTpm, traced: Traced, tmp_path: Path, policy: tuple[Assertion, ...]
) -> None:
    sealed = traced.seal(policy, None if policy else VALUE)
    (tmp_path / "pub").write_bytes(sealed.public_file)
    (tmp_path / "priv").write_bytes(sealed.private_file)
    tpm.tool("tpm2_load", "-C", f"{SRK_HANDLE:#x}", "-u", "pub", "-r", "priv", "-c", "ctx", cwd=tmp_path)
    tpm.flush()
    auth = "pcr:sha256:7" if policy else VALUE.value.decode()
    assert tpm.tool("tpm2_unseal", "-c", "ctx", "-p", auth, cwd=tmp_path).stdout.encode() == DATA
    tpm.flush()


@pytest.mark.parametrize(
    ("options", "policy", "value"),
    [
        ((), (), None),
        (("-p", "an authorization value"), (), VALUE),
        (("-L", "pcr.policy"), (PRESENT,), None),
        (("-L", "pcr.policy", "-a", "fixedtpm|fixedparent|noda"), (PRESENT,), None),
        (("-L", "pcr.policy", "-p", "an authorization value"), (PRESENT,), None),
        (("-L", "pcr.policy", "-p", "an authorization value"), (), VALUE),
        (("-L", "pcr.policy", "-p", "an authorization value", "-a", "fixedtpm|fixedparent"), (PRESENT,), None),
    ],
)
def test_what_tpm2_tools_sealed_is_unsealed_here(
    tpm: SimulatedTpm,
    traced: Traced,
    tmp_path: Path,
    options: tuple[str, ...],
    policy: tuple[Assertion, ...],
    value: Secret | None,
) -> None:
    """Document 004's sequence; where there is a value besides a policy it does not get into the policy's way."""
    tpm.tool("tpm2_createpolicy", "--policy-pcr", "-l", "sha256:7", "-L", "pcr.policy", cwd=tmp_path)
    (tmp_path / "secret").write_bytes(DATA)
    create = ("tpm2_create", "-C", f"{SRK_HANDLE:#x}", "-i", "secret", "-u", "pub", "-r", "priv", *options)
    tpm.tool(*create, cwd=tmp_path)
    tpm.flush()
    tpm.tool("tpm2_flushcontext", "--loaded-session")  # which tpm2_createpolicy has left
    sealed = read_sealed_files((tmp_path / "pub").read_bytes(), (tmp_path / "priv").read_bytes())
    assert traced.unseal(sealed, policy, authorization=value) == DATA
    assert DATA not in traced.captured()
