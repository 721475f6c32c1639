"""NV secrets: who may read and write them, that the bus carries none of it, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, extend, pcr_policy
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    HandleNotFoundError,
    HandleOccupiedError,
    PolicyError,
    PolicyRefusedError,
    TpmMemoryError,
    TpmRefusedError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthValue
from tpm_mtls.policy.files import FoundPolicy
from tpm_mtls.structures import NvAttribute, NvPublic
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.tpm import Tpm

DATA = b"the launch code is 0000"
VALUE = Secret(b"an authorization value")
WRONG = Secret(b"wrong")
HANDLE = 0x01520042
POLICY = (pcr_policy(),)
BY_VALUE = NvPublic(HANDLE, 64, NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA)
BOUND = NvPublic(HANDLE, 64, NvAttribute.POLICYREAD | NvAttribute.OWNERWRITE | NvAttribute.NO_DA, policy_digest(POLICY))
NV_WRITE, NV_READ, DEFINE = 0x137, 0x14E, 0x12A


@pytest.fixture
def trace(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandTrace:
    return CommandTrace(tpm, tmp_path, monkeypatch)


@pytest.fixture
def opened(trace: CommandTrace) -> Iterator[Tpm]:
    """An open TPM that knows its storage root key already, as a daemon's does; its commands are in `trace`."""
    with open_tpm(trace.tcti) as tpm:
        tpm.sessions.srk()
        yield tpm


def made(opened: Tpm, public: NvPublic = BY_VALUE, value: Secret | None = VALUE) -> NvPublic:
    return opened.nv_secrets.write(opened.nv_secrets.define(public, value), DATA, authorization=value)


def sent(trace: CommandTrace, number: int) -> list[str]:
    """The last commands."""
    return trace.commands()[-number:]


def test_few_commands_are_sent(opened: Tpm, trace: CommandTrace) -> None:
    public = opened.nv_secrets.define(BY_VALUE, VALUE)
    assert sent(trace, 2) == ["StartAuthSession", "NV_DefineSpace"]
    public = opened.nv_secrets.write(public, DATA, authorization=VALUE)
    before = len(trace.commands())
    public = opened.nv_secrets.write(public, b"another", authorization=VALUE)
    assert trace.commands()[before:] == ["StartAuthSession", "NV_Write"]
    before = len(trace.commands())
    assert opened.nv_secrets.read(public, 7, authorization=VALUE) == b"another"
    assert trace.commands()[before:] == ["StartAuthSession", "NV_Read"]
    before = len(trace.commands())
    opened.nv_secrets.undefine(public)
    assert trace.commands()[before:] == ["StartAuthSession", "NV_UndefineSpace"]

    public = made(opened, BOUND, None)
    before = len(trace.commands())
    assert opened.nv_secrets.read(public, len(DATA), policy=POLICY) == DATA
    assert trace.commands()[before:] == ["StartAuthSession", "PolicyPCR", "NV_Read"]


def test_what_an_index_is_after_each_step(opened: Tpm) -> None:
    defined = opened.nv_secrets.define(BY_VALUE, VALUE)
    assert opened.nv_secrets.inspect(HANDLE) == defined == replace(BY_VALUE, written=False)
    written = opened.nv_secrets.write(defined, DATA, authorization=VALUE)
    assert opened.nv_secrets.inspect(HANDLE) == written == BY_VALUE
    opened.nv_secrets.undefine(written)
    with pytest.raises(HandleNotFoundError):
        opened.nv_secrets.inspect(HANDLE)


@pytest.mark.parametrize(("public", "policy"), [(BY_VALUE, ()), (BOUND, POLICY)])
def test_the_bus_carries_neither_content_nor_authorization_value(
    opened: Tpm, trace: CommandTrace, public: NvPublic, policy: tuple[Assertion, ...]
) -> None:
    value = None if policy else VALUE
    public = made(opened, public, value)
    assert opened.nv_secrets.read(public, len(DATA), authorization=value, policy=policy) == DATA
    opened.nv_secrets.undefine(public)
    assert DATA not in trace.captured()
    assert VALUE.value not in trace.captured()


def test_a_bus_without_such_sessions_carries_the_content(opened: Tpm, trace: CommandTrace) -> None:
    """What the test above looks for is there to be found."""
    opened.nv.define(HANDLE, len(DATA))
    opened.nv.write(HANDLE, DATA)
    assert DATA in trace.captured()


@pytest.mark.parametrize("size", [1, 767, 768, 769, 2000])
def test_contents_of_all_sizes_are_read_back(opened: Tpm, size: int) -> None:
    content = os.urandom(size)
    public = opened.nv_secrets.define(replace(BY_VALUE, size=size), VALUE)
    public = opened.nv_secrets.write(public, content, authorization=VALUE)
    assert opened.nv_secrets.read(public, authorization=VALUE) == content
    assert opened.nv_secrets.read(public, size + 1, authorization=VALUE) == content
    assert opened.nv_secrets.read(public, size // 2, authorization=VALUE) == content[: size // 2]


@pytest.mark.parametrize("value", [b"x", bytes(range(32)), b"ends in zeros\0\0"])
def test_the_authorization_value_is_needed_to_read_and_to_write(opened: Tpm, value: bytes) -> None:
    public = made(opened, value=Secret(value))
    assert opened.nv_secrets.read(public, len(DATA), authorization=Secret(value)) == DATA
    uses: list[Callable[[Secret | None], object]] = [
        lambda wrong: opened.nv_secrets.read(public, authorization=wrong),
        lambda wrong: opened.nv_secrets.write(public, b"x", authorization=wrong),
    ]
    for use in uses:
        for wrong in (WRONG, None):
            with pytest.raises(AuthorizationError, match="NV 0x01520042: wrong or missing") as refusal:
                use(wrong)
            assert refusal.value.rc == 0x9A2
    assert opened.nv_secrets.read(public, len(DATA), authorization=Secret(value)) == DATA


def test_an_index_guarded_by_dictionary_attack_protection_says_so(opened: Tpm) -> None:
    public = made(opened, replace(BY_VALUE, attributes=BY_VALUE.attributes & ~NvAttribute.NO_DA))
    with pytest.raises(AuthorizationError, match="this counts towards the TPM's lockout") as refusal:
        opened.nv_secrets.read(public, authorization=WRONG)
    assert refusal.value.rc == 0x98E


def test_after_something_else_was_booted_it_cannot_be_read_but_written(tpm: SimulatedTpm, opened: Tpm) -> None:
    public = made(opened, BOUND, None)
    extend(tpm)
    with pytest.raises(
        PolicyRefusedError, match=r"cannot read NV 0x01520042: .*0x99d\): PCR 7 \(sha256\) differs"
    ) as refusal:
        opened.nv_secrets.read(public, policy=POLICY)
    assert refusal.value.rc == 0x99D
    opened.nv_secrets.write(public, b"x")


def test_a_policy_to_write_is_proved_too(tpm: SimulatedTpm, opened: Tpm, trace: CommandTrace) -> None:
    attributes = NvAttribute.POLICYREAD | NvAttribute.POLICYWRITE | NvAttribute.NO_DA
    public = opened.nv_secrets.define(replace(BOUND, attributes=attributes))
    public = opened.nv_secrets.write(public, DATA, policy=POLICY)
    assert sent(trace, 3) == ["StartAuthSession", "PolicyPCR", "NV_Write"]
    extend(tpm)
    with pytest.raises(PolicyRefusedError, match="cannot write NV 0x01520042"):
        opened.nv_secrets.write(public, b"x", policy=POLICY)
    with pytest.raises(PolicyError, match="the policy of NV 0x01520042 is missing"):
        opened.nv_secrets.write(public, b"x")


@pytest.mark.parametrize("known", [VALUE, WRONG, None])
def test_a_value_beside_the_policy_does_not_get_into_its_way(
    opened: Tpm, trace: CommandTrace, known: Secret | None
) -> None:
    """The value is none of the policy's, but encryption would depend on it: other bytes would arrive, unnoticed."""
    attributes = NvAttribute.POLICYREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA
    public = made(opened, replace(BOUND, attributes=attributes))
    assert opened.nv_secrets.read(public, len(DATA), policy=POLICY, authorization=known) == DATA
    assert sent(trace, 4) == ["StartAuthSession", "PolicyPCR", "StartAuthSession", "NV_Read"]
    assert DATA not in trace.captured()


def test_policy_and_authorization_value_are_both_needed(opened: Tpm, trace: CommandTrace) -> None:
    policy = (*POLICY, PolicyAuthValue())
    attributes = NvAttribute.POLICYREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA
    public = made(opened, replace(BOUND, attributes=attributes, policy=policy_digest(policy)))
    assert opened.nv_secrets.read(public, len(DATA), policy=policy, authorization=VALUE) == DATA
    assert sent(trace, 4) == ["StartAuthSession", "PolicyPCR", "PolicyAuthValue", "NV_Read"]
    with pytest.raises(AuthorizationError):
        opened.nv_secrets.read(public, policy=policy, authorization=WRONG)


def test_a_signed_policy_opens_it(opened: Tpm, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    policy = (operator.authorize(),)
    public = made(opened, replace(BOUND, policy=policy_digest(policy)), None)
    signed = [FoundPolicy(Path("signed"), operator.sign(*POLICY))]
    assert opened.nv_secrets.read(public, len(DATA), policy=policy, signed_policies=signed) == DATA
    with pytest.raises(PolicyError, match="there is no policy signed by"):
        opened.nv_secrets.read(public, policy=policy)


def test_another_policy_or_none_is_refused_before_the_tpm_is_asked(opened: Tpm, trace: CommandTrace) -> None:
    public = made(opened, BOUND, None)
    before = trace.commands()
    with pytest.raises(PolicyError, match="the policy is not that of NV 0x01520042"):
        opened.nv_secrets.read(public, policy=(pcr_policy({7: "11" * 32}),))
    with pytest.raises(PolicyError, match="the policy of NV 0x01520042 is missing"):
        opened.nv_secrets.read(public)
    assert trace.commands() == before


def test_a_policy_is_left_aside_where_the_authorization_value_will_do(opened: Tpm) -> None:
    public = made(opened)
    assert opened.nv_secrets.read(public, len(DATA), authorization=VALUE, policy=POLICY) == DATA


def test_the_owner_s_password_counts_where_only_the_owner_may(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Secret(b"the owner's own password")
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    tpm.tool("tpm2_changeauth", "-c", "o", owner.value.decode())
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    public = replace(BY_VALUE, attributes=NvAttribute.OWNERREAD | NvAttribute.OWNERWRITE)
    with open_tpm(trace.tcti, owner_authorization=owner) as opened:
        public = made(opened, public, None)
        assert opened.nv_secrets.read(public, len(DATA)) == DATA
        assert owner.value not in trace.captured()

    with open_tpm(tpm.tcti) as without:
        for use in (
            lambda: without.nv_secrets.read(public),
            lambda: without.nv_secrets.write(public, b"x"),
            lambda: without.nv_secrets.undefine(public),
            lambda: without.nv_secrets.define(replace(public, index=HANDLE + 1)),
        ):
            with pytest.raises(AuthorizationError) as refusal:
                use()
            assert "--owner-auth" in refusal.value.hint
    with open_tpm(tpm.tcti, owner_authorization=owner) as opened:
        opened.nv_secrets.undefine(public)


def test_an_index_that_is_there_stays(opened: Tpm) -> None:
    public = made(opened)
    with pytest.raises(HandleOccupiedError, match="the NV index 0x01520042 is occupied") as refusal:
        opened.nv_secrets.define(BOUND)
    assert refusal.value.handle == HANDLE
    assert opened.nv_secrets.read(public, len(DATA), authorization=VALUE) == DATA


def test_an_index_that_somebody_put_in_its_place_is_neither_used_nor_removed(tpm: SimulatedTpm, opened: Tpm) -> None:
    public = made(opened)
    tpm.tool("tpm2_nvundefine", "-C", "o", f"{HANDLE:#x}")
    tpm.tool(
        "tpm2_nvdefine", f"{HANDLE:#x}", "-C", "o", "-s", "64", "-a", "authread|authwrite", "-p", VALUE.value.decode()
    )
    for use in (
        lambda: opened.nv_secrets.read(public, authorization=VALUE),
        lambda: opened.nv_secrets.write(public, DATA, authorization=VALUE),
        lambda: opened.nv_secrets.undefine(public),
    ):
        with pytest.raises(HandleOccupiedError, match="is not the one that was made, but another") as refusal:
            use()
        assert refusal.value.handle == HANDLE
    assert tpm.handles("nv-index") == [f"{HANDLE:#x}".upper().replace("0X", "0x")]


def test_a_counter_in_its_place_is_another_one_too(tpm: SimulatedTpm, opened: Tpm) -> None:
    public = made(opened)
    tpm.tool("tpm2_nvundefine", "-C", "o", f"{HANDLE:#x}")
    tpm.tool("tpm2_nvdefine", f"{HANDLE:#x}", "-C", "o", "-a", "authread|authwrite|nt=counter")
    with pytest.raises(HandleOccupiedError, match="but another"):
        opened.nv_secrets.read(public, authorization=VALUE)


def test_an_index_that_is_not_there_is_told(opened: Tpm) -> None:
    for use in (
        lambda: opened.nv_secrets.read(BY_VALUE, authorization=VALUE),
        lambda: opened.nv_secrets.write(BY_VALUE, DATA, authorization=VALUE),
        lambda: opened.nv_secrets.undefine(BY_VALUE),
    ):
        with pytest.raises(HandleNotFoundError, match="0x01520042") as refusal:
            use()
        assert "was the TPM cleared, or the index removed?" in refusal.value.hint


def test_what_was_never_written_cannot_be_read(opened: Tpm) -> None:
    public = opened.nv_secrets.define(BY_VALUE, VALUE)
    with pytest.raises(TpmRefusedError, match="cannot read NV 0x01520042: that NV index was never written") as refusal:
        opened.nv_secrets.read(public, authorization=VALUE)
    assert refusal.value.rc == 0x14A


def fill(opened: Tpm) -> None:
    """Makes indices until the NV memory is full."""
    for number in range(100):
        opened.nv_secrets.define(replace(BY_VALUE, index=HANDLE + number, size=2000), VALUE)


def test_that_the_memory_is_full_is_told(opened: Tpm, tpm: SimulatedTpm) -> None:
    with pytest.raises(TpmMemoryError, match="NV memory is full") as refusal:
        fill(opened)
    assert refusal.value.rc == 0x14B
    assert "tpm-mtls secret del" in refusal.value.hint
    assert 0 < len(tpm.handles("nv-index")) < 100


@pytest.mark.parametrize(
    ("command", "rc", "message"),
    [(DEFINE, 0x921, "lockout"), (NV_WRITE, 0x920, "slows writes"), (NV_READ, 0x921, "lockout")],
)
def test_what_the_tpm_refuses_leaves_nothing(
    tpm: SimulatedTpm, tmp_path: Path, command: int, rc: int, message: str
) -> None:
    """The fixture looks for what is left."""
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(command, rc)
    with open_tpm(proxy.tcti) as opened, pytest.raises(TpmRefusedError, match=message) as refusal:
        opened.nv_secrets.read(made(opened), authorization=VALUE)
    assert refusal.value.rc == rc


@pytest.mark.parametrize("answers", [1, 3])
def test_a_pcr_that_changes_in_the_midst_is_tried_again_but_not_for_ever(
    tpm: SimulatedTpm, opened: Tpm, tmp_path: Path, answers: int
) -> None:
    public = made(opened, BOUND, None)
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(NV_READ, 0x128, times=answers)
    with open_tpm(proxy.tcti) as other:
        if answers == 1:
            assert other.nv_secrets.read(public, len(DATA), policy=POLICY) == DATA
            return
        with pytest.raises(PolicyRefusedError, match="something changed meanwhile") as refusal:
            other.nv_secrets.read(public, policy=POLICY)
        assert refusal.value.rc == 0x128


def test_tpm2_tools_read_what_was_written_here(tpm: SimulatedTpm, opened: Tpm, tmp_path: Path) -> None:
    made(opened)
    value = VALUE.value.decode()
    tpm.tool("tpm2_nvread", f"{HANDLE:#x}", "-P", value, "-s", str(len(DATA)), "-o", "content", cwd=tmp_path)
    assert (tmp_path / "content").read_bytes() == DATA

    bound = replace(BOUND, index=HANDLE + 1)
    made(opened, bound, None)
    tpm.tool("tpm2_nvread", f"{HANDLE + 1:#x}", "-P", "pcr:sha256:7", "-s", str(len(DATA)), "-o", "bound", cwd=tmp_path)
    assert (tmp_path / "bound").read_bytes() == DATA


def test_what_tpm2_tools_wrote_is_read_here(
    tpm: SimulatedTpm, opened: Tpm, trace: CommandTrace, tmp_path: Path
) -> None:
    """Document 004's sequence: ``policyread|authwrite`` with the policy of ``tpm2_createpolicy``."""
    (tmp_path / "secret").write_bytes(DATA)
    tpm.tool("tpm2_createpolicy", "--policy-pcr", "-l", "sha256:7", "-L", "pcr.policy", cwd=tmp_path)
    tpm.tool("tpm2_flushcontext", "--loaded-session")  # which tpm2_createpolicy has left
    index = f"{HANDLE:#x}"
    define = ("tpm2_nvdefine", index, "-C", "o", "-s", str(len(DATA)), "-a", "policyread|authwrite", "-L", "pcr.policy")
    tpm.tool(*define, cwd=tmp_path)
    tpm.tool("tpm2_nvwrite", index, "-i", "secret", cwd=tmp_path)

    public = opened.nv_secrets.inspect(HANDLE)
    assert opened.nv_secrets.read(public, policy=POLICY) == DATA
    assert DATA not in trace.captured()
    extend(tpm)
    with pytest.raises(PolicyRefusedError):
        opened.nv_secrets.read(public, policy=POLICY)
    opened.nv_secrets.write(public, b"changed")
    opened.nv_secrets.undefine(public)
