"""Keys that only their policy opens sign for programs that know only passwords."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.relay_policies import PolicyWorkshop
from support.relay_signing import answer, signing_relay, verify
from support.tpm_keys import make_key
from tpm_mtls_relay import errors
from tpm_mtls_relay.errors import ConnectionLostError, KeyGoneError, RelayError, TransportError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, code_of, simple_command
from tpm_mtls_relay.policies import approvals as policy_approvals
from tpm_mtls_relay.policies.request import sign_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.relay_signing import SigningRelay
    from support.tpm import SimulatedTpm
    from tpm_mtls_relay.messages.wire import Exchange

PCR_COMMANDS = ["START_AUTH_SESSION", "POLICY_PCR", "SIGN"]
VERIFICATION = ["LOAD_EXTERNAL", "VERIFY_SIGNATURE", "FLUSH_CONTEXT"]
AUTH_VALUE = {"type": "auth-value"}


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    return folder


@pytest.fixture
def workshop(tpm: SimulatedTpm, tmp_path: Path, policies: Path) -> PolicyWorkshop:
    return PolicyWorkshop(tpm, tmp_path, policies)


@pytest.fixture
def relay(tpm: SimulatedTpm, policies: Path) -> Iterator[SigningRelay]:
    with signing_relay(tpm, policies) as relay:
        yield relay


def refused(relay: SigningRelay, handle: int, key: object, password: bytes = b"") -> int:
    """The code with which a signature is refused; nothing of the attempt is left in the TPM."""
    relay.commands.clear()
    with pytest.raises(RelayError) as caught:
        relay.sign(handle, key, password)  # type: ignore[arg-type]  # a PolicyKey
    assert relay.objects.loaded <= {handle}
    return caught.value.code


# --- PCRs


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_a_key_bound_to_pcrs_signs_with_three_commands(
    workshop: PolicyWorkshop, relay: SigningRelay, algorithm: str
) -> None:
    key = workshop.key([workshop.pcr(0, 7)], algorithm=algorithm)
    handle = relay.load(key)
    for _ in range(3):
        assert relay.signed_with(handle, key) == PCR_COMMANDS


def test_after_a_pcr_was_extended_the_tpm_refuses(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    key = workshop.key([workshop.pcr(0, 7)])
    handle = relay.load(key)
    assert relay.signed_with(handle, key) == PCR_COMMANDS
    workshop.extend(7)
    assert refused(relay, handle, key) == 0x99D
    assert relay.commands == [*PCR_COMMANDS, "FLUSH_CONTEXT", "GET_CAPABILITY"]


def test_pcrs_of_several_banks_are_all_needed(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    key = workshop.key([workshop.pcr(0, 7), workshop.pcr(16, bank="sha1"), workshop.pcr(23, bank="sha384")])
    handle = relay.load(key)
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", *["POLICY_PCR"] * 3, "SIGN"]
    workshop.extend(16, bank="sha1")
    assert refused(relay, handle, key) == 0x99D


def test_a_bank_that_was_switched_off_is_named(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0, bank="sha384")])
    handle = relay.load(key)
    assert relay.signed_with(handle, key) == PCR_COMMANDS
    tpm.tool("tpm2_pcrallocate", "sha1:none+sha256:all+sha384:none+sha512:none")
    tpm.flush()
    tpm.restart()
    with signing_relay(tpm, workshop.policies) as again:
        assert refused(again, again.load(key), key) == errors.POLICY_BANK_MISSING


def test_a_bank_that_the_tpm_never_had_is_named(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    unknown = workshop.pcr(0, values={0: bytes(32)}) | {"bank": "sm3_256"}
    # 0x12: TPM_ALG_SM3_256, which tpm2-tools' trial session cannot assert on this TPM
    from tpm_mtls_relay.policies.digest import policy_digest
    from tpm_mtls_relay.policies.file import parse_key_policy

    _, policy = parse_key_policy(json.dumps({"format": 1, "name": "000b" + 64 * "0", "policy": [unknown]}).encode())
    key = workshop.key([unknown], digest=policy_digest(policy, "sha256"))
    handle = relay.load(key)
    assert refused(relay, handle, key) == errors.POLICY_BANK_MISSING
    assert relay.commands == ["START_AUTH_SESSION", "POLICY_PCR", "FLUSH_CONTEXT"]


def test_a_pcr_that_changes_in_the_midst_of_a_signature_only_delays_it(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)
    changes = [10]

    def extend(command: bytes, exchange: Exchange) -> bytes:
        if code_of(command) == commands.SIGN and changes:
            workshop.extend(changes.pop())
        return exchange(command)

    relay.before = extend
    assert relay.signed_with(handle, key) == [*PCR_COMMANDS, "FLUSH_CONTEXT", *PCR_COMMANDS]


def test_pcrs_that_never_come_to_rest_are_reported(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)
    relay.before = answer(commands.SIGN, 0x128)
    assert refused(relay, handle, key) == 0x128
    assert relay.commands == [*PCR_COMMANDS, "FLUSH_CONTEXT"] * 3


# --- several states


def test_any_of_several_states_of_the_same_pcrs_is_one_way(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    now = workshop.pcr(0, 7)
    workshop.extend(7)
    later = workshop.pcr(0, 7)
    key = workshop.key([{"type": "or", "branches": [[now], [later]]}])
    handle = relay.load(key)
    ways = ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_OR"]
    assert relay.signed_with(handle, key) == [*ways, "SIGN"]
    workshop.extend(7)
    assert refused(relay, handle, key) == errors.POLICY_NOT_SATISFIED
    assert relay.commands == [*ways, "FLUSH_CONTEXT", "GET_CAPABILITY"]


def test_of_different_ways_the_one_that_worked_is_tried_first(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    other = workshop.pcr(0, values={0: bytes([1]) * 32})
    key = workshop.key([{"type": "or", "branches": [[other], [workshop.pcr(7)]]}])
    handle = relay.load(key)
    first = ["POLICY_PCR", "POLICY_OR", "POLICY_RESTART", "POLICY_PCR", "POLICY_OR"]
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", *first, "SIGN"]
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_OR", "SIGN"]


def test_an_or_in_an_or_is_resolved(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    wrong = workshop.pcr(0, values={0: bytes([1]) * 32})
    inner = {"type": "or", "branches": [[workshop.pcr(1), workshop.pcr(2)], [wrong]]}
    key = workshop.key([{"type": "or", "branches": [[wrong], [inner, workshop.pcr(3)]]}])
    handle = relay.load(key)
    relay.signed_with(handle, key)
    way = ["POLICY_PCR", "POLICY_PCR", "POLICY_OR", "POLICY_PCR", "POLICY_OR"]
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", *way, "SIGN"]
    workshop.extend(3)
    assert refused(relay, handle, key) == errors.POLICY_NOT_SATISFIED


# --- authorization values


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_an_authorization_value_on_top_is_proved(workshop: PolicyWorkshop, relay: SigningRelay, algorithm: str) -> None:
    key = workshop.key([workshop.pcr(0), AUTH_VALUE], algorithm=algorithm, authorization="correct horse")
    handle = relay.load(key)
    relay.signed_with(handle, key, b"correct horse")  # and the TPM asks for a repetition, to note that it is used
    took = relay.signed_with(handle, key, b"correct horse")
    assert took == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_AUTH_VALUE", "SIGN"]
    assert relay.signed_with(handle, key, b"correct horse\0\0") == took
    assert refused(relay, handle, key, b"wrong") == 0x98E
    assert refused(relay, handle, key) == 0x98E
    workshop.extend(0)
    assert refused(relay, handle, key, b"correct horse") == 0x99D


def test_the_value_itself_is_never_sent(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    key = workshop.key([AUTH_VALUE], authorization="correct horse")
    handle = relay.load(key)

    def look(command: bytes, exchange: Exchange) -> bytes:
        assert b"correct horse" not in command
        return exchange(command)

    relay.signed_with(handle, key, b"correct horse")
    relay.before = look
    assert relay.signed_with(handle, key, b"correct horse") == ["START_AUTH_SESSION", "POLICY_AUTH_VALUE", "SIGN"]


@pytest.mark.parametrize("change", [-1, -40, 18])
def test_a_response_that_does_not_prove_the_value_is_not_the_tpms(
    workshop: PolicyWorkshop, relay: SigningRelay, change: int
) -> None:
    """Changed in its HMAC, its nonce or its signature."""
    key = workshop.key([AUTH_VALUE], authorization="correct horse")
    handle = relay.load(key)

    def falsify(command: bytes, exchange: Exchange) -> bytes:
        response = bytearray(exchange(command))
        if code_of(command) == commands.SIGN and code_of(response) == 0:
            response[change] ^= 1
        return bytes(response)

    relay.before = falsify
    assert refused(relay, handle, key, b"correct horse") == errors.MALFORMED_RESPONSE


# --- signed policies


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
@pytest.mark.parametrize("policy_ref", [b"", b"fleet 7"])
def test_a_signed_policy_is_verified_once(
    workshop: PolicyWorkshop, relay: SigningRelay, kind: str, policy_ref: bytes
) -> None:
    operator = workshop.operator(kind)
    key = workshop.key([workshop.authorize(operator, policy_ref)])
    workshop.approve(operator, [workshop.pcr(0, 7)], policy_ref=policy_ref)
    handle = relay.load(key)
    before = ["START_AUTH_SESSION", "POLICY_PCR"]
    assert relay.signed_with(handle, key) == [*before, *VERIFICATION, "POLICY_AUTHORIZE", "SIGN"]
    assert relay.signed_with(handle, key) == [*before, "POLICY_AUTHORIZE", "SIGN"]


def test_an_update_needs_a_new_signature_and_no_new_key(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)], version=1)
    handle = relay.load(key)
    relay.signed_with(handle, key)
    workshop.extend(0)
    assert refused(relay, handle, key) == errors.POLICY_NOT_SATISFIED
    assert relay.commands == ["START_AUTH_SESSION", "POLICY_PCR", "FLUSH_CONTEXT", "GET_CAPABILITY"]
    workshop.approve(operator, [workshop.pcr(0)], version=2)
    relay.signed_with(handle, key)
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_AUTHORIZE", "SIGN"]


def test_of_several_signed_policies_the_one_that_worked_is_tried_first(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)], version=1)
    workshop.approve(operator, [workshop.pcr(0, values={0: bytes([2]) * 32})], version=2)
    handle = relay.load(key)
    took = relay.signed_with(handle, key)
    assert took == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_PCR", *VERIFICATION, "POLICY_AUTHORIZE", "SIGN"]
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_AUTHORIZE", "SIGN"]


def test_a_counter_that_went_on_outdates_a_signed_policy(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    counter = workshop.counter()
    workshop.approve(operator, [workshop.pcr(0), counter], version=1)
    handle = relay.load(key)
    relay.signed_with(handle, key)
    way = ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_NV", "POLICY_AUTHORIZE", "SIGN"]
    assert relay.signed_with(handle, key) == way
    workshop.advance()
    assert refused(relay, handle, key) == errors.POLICY_OUTDATED
    assert relay.commands == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_NV", "FLUSH_CONTEXT"]
    newer = counter | {"operand": f"{int(counter['operand'], 16) + 1:016x}"}
    workshop.approve(operator, [workshop.pcr(0), newer], version=2)
    relay.signed_with(handle, key)
    assert relay.signed_with(handle, key) == way


def test_a_counter_that_is_gone_satisfies_nothing(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator), AUTH_VALUE], authorization="secret")
    workshop.approve(operator, [workshop.counter()])
    handle = relay.load(key)
    relay.signed_with(handle, key, b"secret")
    tpm.tool("tpm2_nvundefine", "0x01500100", "-C", "o")
    assert refused(relay, handle, key, b"secret") == errors.POLICY_NOT_SATISFIED
    # one that was defined anew and never written is no better
    tpm.tool("tpm2_nvdefine", "0x01500100", "-C", "o", "-s", "8", "-a", "nt=counter|ownerwrite|authread|no_da")
    assert refused(relay, handle, key, b"secret") == errors.POLICY_NOT_SATISFIED


def test_a_signed_policy_may_leave_a_choice(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator), workshop.pcr(5)])
    now = workshop.pcr(0)
    workshop.approve(operator, [{"type": "or", "branches": [[now], [workshop.pcr(0, values={0: bytes(32)})]]}])
    handle = relay.load(key)
    relay.signed_with(handle, key)
    way = ["POLICY_PCR", "POLICY_OR", "POLICY_AUTHORIZE", "POLICY_PCR"]
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", *way, "SIGN"]
    workshop.extend(5)
    assert refused(relay, handle, key) == 0x99D


def test_a_choice_between_fixed_pcrs_and_a_signed_policy(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([{"type": "or", "branches": [[workshop.pcr(0)], [workshop.authorize(operator)]]}])
    handle = relay.load(key)
    assert relay.signed_with(handle, key) == ["START_AUTH_SESSION", "POLICY_PCR", "POLICY_OR", "SIGN"]
    workshop.extend(0)
    workshop.approve(operator, [workshop.pcr(0)])
    relay.signed_with(handle, key)
    assert relay.signed_with(handle, key)[-3:] == ["POLICY_AUTHORIZE", "POLICY_OR", "SIGN"]


def test_without_a_signed_policy_there_is_nothing_to_try(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator, b"web")])
    handle = relay.load(key)
    assert refused(relay, handle, key) == errors.POLICY_UNSIGNED
    workshop.approve(operator, [workshop.pcr(0)])  # for another purpose
    workshop.approve(workshop.operator(), [workshop.pcr(0)], policy_ref=b"web", version=2)  # by somebody else
    assert refused(relay, handle, key) == errors.POLICY_UNSIGNED
    assert relay.commands == []


def test_somebody_elses_signature_is_refused(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator, other = workshop.operator(), workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    policy = [workshop.pcr(0)]
    forged = workshop.signature(other, workshop.digest(policy)).hex()
    workshop.approve(operator, policy, signature=forged)
    assert refused(relay, handle, key) == errors.POLICY_SIGNATURE
    assert relay.commands == ["START_AUTH_SESSION", "POLICY_PCR", *VERIFICATION, "FLUSH_CONTEXT"]


@pytest.mark.parametrize(
    "signature", ["", "00", "0018000b", "0018000b0020", "0014000b0001ff", "ffff", "0005000b" + 64 * "0"]
)
def test_a_signature_that_is_none_is_refused(workshop: PolicyWorkshop, relay: SigningRelay, signature: str) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    workshop.approve(operator, [workshop.pcr(0)], signature=signature)
    assert refused(relay, handle, key) == errors.POLICY_SIGNATURE


def test_a_wrong_signature_does_not_keep_a_right_one_from_working(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    workshop.approve(operator, [workshop.pcr(0)], version=2, signature=workshop.signature(operator, b"").hex())
    workshop.approve(operator, [workshop.pcr(0)], version=1)
    relay.signed_with(handle, key)
    workshop.extend(0)
    assert refused(relay, handle, key) == errors.POLICY_NOT_SATISFIED


def test_a_damaged_signed_policy_is_named_where_no_other_applies(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    workshop.approve(operator, [workshop.pcr(0)], version=2, format=2)
    assert refused(relay, handle, key) == errors.POLICY_DAMAGED
    workshop.approve(operator, [workshop.pcr(0)], version=1)
    relay.signed_with(handle, key)
    workshop.extend(0)
    assert refused(relay, handle, key) == errors.POLICY_DAMAGED


@pytest.mark.parametrize("digest", ["00" * 32, "00" * 48, ""])
def test_a_signed_policy_that_does_not_lead_to_its_digest_is_damaged(
    workshop: PolicyWorkshop, relay: SigningRelay, digest: str
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    workshop.approve(operator, [workshop.pcr(0)], digest=digest)
    assert refused(relay, handle, key) == errors.POLICY_DAMAGED


def test_a_signed_policy_with_a_digest_of_another_size_is_damaged(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    handle = relay.load(key)
    pcr = workshop.pcr(0)
    path = workshop.approve(operator, [pcr])
    path.write_text(path.read_text().replace(pcr["digest"], "00" * 48))
    assert refused(relay, handle, key) == errors.POLICY_DAMAGED


def test_a_signer_whose_name_is_not_that_of_its_key_is_damaged(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    operator, other = workshop.operator(), workshop.operator()
    authorize = workshop.authorize(operator)
    key = workshop.key([authorize])
    authorize["signer"]["public"] = other.public.hex()
    workshop.write(key.name, [authorize])
    workshop.approve(operator, [workshop.pcr(0)])
    assert refused(relay, relay.load(key), key) == errors.POLICY_DAMAGED


def test_a_signers_key_that_the_tpm_cannot_use_is_damaged(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    import hashlib

    operator = workshop.operator()
    bent = operator.public[:-1] + bytes([operator.public[-1] ^ 1])  # not on the curve
    signer = type(operator)(operator.key, bent, b"\x00\x0b" + hashlib.sha256(bent).digest(), operator.scheme)
    key = workshop.key([workshop.authorize(signer)])
    workshop.approve(signer, [workshop.pcr(0)])
    assert refused(relay, relay.load(key), key) == errors.POLICY_DAMAGED
    assert relay.commands == ["START_AUTH_SESSION", "POLICY_PCR", "LOAD_EXTERNAL", "FLUSH_CONTEXT"]


def test_a_ticket_that_the_tpm_does_not_take_any_more_is_renewed_once(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    """TPM2_Clear makes the owner's tickets worthless; a key of the platform's hierarchy outlives it."""
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)], write=False)
    workshop.approve(operator, [workshop.pcr(0)])
    handle = platform_key(tpm, workshop, [workshop.authorize(operator)])
    first = ["START_AUTH_SESSION", "POLICY_PCR", *VERIFICATION, "POLICY_AUTHORIZE", "SIGN"]
    sign = lambda: relay.sign(handle, key)  # noqa: E731 - the signature is another key's
    assert code_of(sign()) == 0
    relay.commands.clear()
    tpm.tool("tpm2_clear", "-c", "p")
    assert code_of(sign()) == 0
    assert relay.commands == [*first[:2], "POLICY_AUTHORIZE", *VERIFICATION, *first[-2:]]
    tpm.tool("tpm2_evictcontrol", "-C", "p", "-c", f"{handle:#x}")


def platform_key(tpm: SimulatedTpm, workshop: PolicyWorkshop, policy: list[dict[str, object]]) -> int:
    """A persistent P-256 key of the platform's hierarchy with ``policy``."""
    folder = workshop.folder
    (folder / "platform.digest").write_bytes(workshop.digest(policy))
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|sign|noda"
    algorithms = ("-g", "sha256", "-G", "ecc256:ecdsa-sha256:null")
    create = ("tpm2_createprimary", "-C", "p", *algorithms, "-a", attributes, "-L", "platform.digest")
    tpm.tool(*create, "-c", "platform.ctx", cwd=folder)
    tpm.tool("tpm2_readpublic", "-c", "platform.ctx", "-n", "platform.name", cwd=folder)
    tpm.tool("tpm2_evictcontrol", "-C", "p", "-c", "platform.ctx", "0x81800100", cwd=folder)
    tpm.flush()
    workshop.write((folder / "platform.name").read_bytes(), policy)
    return 0x81800100


def test_a_ticket_that_is_refused_when_it_is_new_is_not_asked_for_again(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)])
    handle = relay.load(key)
    relay.before = answer(commands.POLICY_AUTHORIZE, 0x4C4)
    assert refused(relay, handle, key) == errors.POLICY_SIGNATURE
    assert relay.commands.count("VERIFY_SIGNATURE") == 1


def test_tickets_are_not_kept_without_end(
    workshop: PolicyWorkshop, relay: SigningRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_approvals, "TICKETS_LIMIT", 1)
    operator = workshop.operator()
    keys = [workshop.key([workshop.authorize(operator, reference)]) for reference in (b"one", b"two")]
    workshop.approve(operator, [workshop.pcr(0)], version=1, policy_ref=b"one")
    workshop.approve(operator, [workshop.pcr(0)], version=2, policy_ref=b"two")
    handles = [relay.load(key) for key in keys]
    for _ in range(2):
        for key, handle in zip(keys, handles, strict=True):
            assert relay.signed_with(handle, key).count("VERIFY_SIGNATURE") == 1
            assert relay.signed_with(handle, key).count("VERIFY_SIGNATURE") == 0


# --- policy files


def test_a_key_without_a_policy_file_is_refused_before_the_tpm_is_asked(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0)], write=False)
    handle = relay.load(key)
    assert refused(relay, handle, key) == errors.POLICY_MISSING
    assert relay.commands == []
    workshop.write(key.name, [workshop.pcr(0)])  # seen by the running relay
    assert relay.signed_with(handle, key) == PCR_COMMANDS


def test_a_policy_that_does_not_lead_to_the_keys_is_refused_before_the_tpm_is_asked(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0)])
    workshop.write(key.name, [workshop.pcr(0, 1)])
    handle = relay.load(key)
    assert refused(relay, handle, key) == errors.POLICY_NOT_THE_KEYS
    workshop.write(key.name, [workshop.pcr(0), AUTH_VALUE])
    assert refused(relay, handle, key) == errors.POLICY_NOT_THE_KEYS
    assert relay.commands == []


def test_a_damaged_policy_file_is_refused_before_the_tpm_is_asked(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0)])
    path = workshop.write(key.name, [workshop.pcr(0)])
    path.write_text(path.read_text()[:-1])
    handle = relay.load(key)
    assert refused(relay, handle, key) == errors.POLICY_DAMAGED
    assert relay.commands == []


def test_a_file_that_is_changed_in_place_is_read_again_after_a_refusal(
    workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)], name="current")
    handle = relay.load(key)
    relay.signed_with(handle, key)
    workshop.extend(0)
    workshop.approve(operator, [workshop.pcr(0)], name="current")
    assert refused(relay, handle, key) == errors.POLICY_NOT_SATISFIED
    relay.signed_with(handle, key)


# --- what is not the policy's


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (commands.START_AUTH_SESSION, 0x903),  # TPM_RC_SESSION_MEMORY
        (commands.START_AUTH_SESSION, 0x901),  # TPM_RC_CONTEXT_GAP
        (commands.POLICY_PCR, 0x101),
        (commands.POLICY_NV, 0x149),
        (commands.LOAD_EXTERNAL, 0x902),
        (commands.LOAD_EXTERNAL, 0x3C5),  # TPM_RC_HIERARCHY: the owner's is switched off
        (commands.VERIFY_SIGNATURE, 0x904),
        (commands.POLICY_AUTHORIZE, 0x904),
        (commands.SIGN, 0x921),
        (commands.SIGN, 0xBF941),
    ],
)
def test_what_the_tpm_answers_otherwise_goes_through_and_nothing_is_left(
    workshop: PolicyWorkshop, relay: SigningRelay, command: int, code: int
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0), workshop.counter()])
    handle = relay.load(key)
    relay.before = answer(command, code)
    assert refused(relay, handle, key) == code


@pytest.mark.parametrize(
    "command", [commands.START_AUTH_SESSION, commands.POLICY_PCR, commands.VERIFY_SIGNATURE, commands.SIGN]
)
def test_a_connection_that_breaks_is_reported_and_cleaned_up_as_far_as_possible(
    workshop: PolicyWorkshop, relay: SigningRelay, command: int
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)])
    handle = relay.load(key)

    def cut(sent: bytes, exchange: Exchange) -> bytes:
        if code_of(sent) == command:
            raise TransportError("the connection to the TPM broke")
        return exchange(sent)

    relay.before = cut
    assert refused(relay, handle, key) == errors.NO_TPM


@pytest.mark.parametrize("command", [commands.START_AUTH_SESSION, commands.POLICY_PCR, commands.SIGN])
@pytest.mark.parametrize("lost", [ConnectionLostError("it was closed", sent=True), KeyGoneError("the session is gone")])
def test_a_session_that_went_with_its_connection_is_begun_anew_once(
    workshop: PolicyWorkshop, relay: SigningRelay, command: int, lost: RelayError
) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)
    times = [2, 1]

    def lose(sent: bytes, exchange: Exchange) -> bytes:
        if code_of(sent) == command and times[-1]:
            times[-1] -= 1
            raise lost
        return exchange(sent)

    relay.before = lose
    assert relay.signed_with(handle, key)[-3:] == PCR_COMMANDS
    times.pop()
    assert refused(relay, handle, key) == lost.code


def test_a_connection_that_stays_broken_hides_nothing(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)

    def cut(sent: bytes, exchange: Exchange) -> bytes:
        if code_of(sent) != commands.START_AUTH_SESSION:
            raise TransportError("the connection to the TPM broke")
        return exchange(sent)

    relay.before = cut
    with pytest.raises(TransportError, match="broke"):
        relay.sign(handle, key)
    tpm.tool("tpm2_flushcontext", "--loaded-session")


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (commands.START_AUTH_SESSION, 2),
        (commands.START_AUTH_SESSION, 9),
        (commands.LOAD_EXTERNAL, 3),
        (commands.SIGN, 0),
        (commands.SIGN, 40),
    ],
)
def test_a_response_that_is_too_short_is_garbage(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, relay: SigningRelay, command: int, size: int
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    workshop.approve(operator, [workshop.pcr(0)])
    handle = relay.load(key)

    def shorten(sent: bytes, exchange: Exchange) -> bytes:
        response = exchange(sent)
        if code_of(sent) == command:
            response = HEADER.pack(SESSIONS, HEADER.size + size, 0) + response[HEADER.size :][:size]
        return response

    relay.before = shorten
    with pytest.raises(RelayError) as caught:
        relay.sign(handle, key)
    assert caught.value.code == errors.MALFORMED_RESPONSE
    tpm.tool("tpm2_flushcontext", "--loaded-session")  # whose handle the relay never got


@pytest.mark.parametrize("response", ["80010000000a00000101", "80010000000b0000000000"])
def test_the_banks_are_asked_for_in_vain(workshop: PolicyWorkshop, relay: SigningRelay, response: str) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)
    workshop.extend(0)

    def odd(sent: bytes, exchange: Exchange) -> bytes:
        return bytes.fromhex(response) if code_of(sent) == commands.GET_CAPABILITY else exchange(sent)

    relay.before = odd
    assert refused(relay, handle, key) == 0x99D


def test_keys_that_need_no_policy_are_signed_with_as_before(
    tpm: SimulatedTpm, tmp_path: Path, workshop: PolicyWorkshop, relay: SigningRelay
) -> None:
    make_key(tpm, tmp_path, handle=0x81000100)
    key = workshop.key([workshop.pcr(0)])
    command = bytes.fromhex("8002 0000003b 0000015d 81000100 00000009 40000009 0000010000".replace(" ", ""))
    command += bytes.fromhex("0020") + bytes(32) + bytes.fromhex("0018000b 8024400000070000".replace(" ", ""))
    command = command[:2] + len(command).to_bytes(4, "big") + command[6:]
    assert code_of(relay.layer(command)) == 0
    assert relay.commands == ["READ_PUBLIC", "SIGN"]
    assert key.name not in {each.name for each in relay.objects.keys().values()}


def test_a_program_that_brings_its_own_session_is_left_alone(workshop: PolicyWorkshop, relay: SigningRelay) -> None:
    key = workshop.key([workshop.pcr(0)])
    handle = relay.load(key)
    seen = relay.sign  # the provider's form is the one that is replaced
    verify(seen(handle, key), key)
    session = relay.layer(
        simple_command(
            commands.START_AUTH_SESSION,
            bytes.fromhex("4000000740000007") + b"\x00\x10" + bytes(16) + bytes.fromhex("0000010010000b"),
        )
    )
    own = session[HEADER.size : HEADER.size + 4]
    relay.layer(
        simple_command(
            commands.POLICY_PCR, bytes.fromhex("000000000001000b03010000"), handles=(int.from_bytes(own, "big"),)
        )
    )
    area = own + bytes.fromhex("0000000000")
    parameters = b"\x00\x20" + bytes(32) + bytes.fromhex("0018000b8024400000070000")
    body = handle.to_bytes(4, "big") + len(area).to_bytes(4, "big") + area + parameters
    relay.commands.clear()
    assert code_of(relay.layer(HEADER.pack(SESSIONS, HEADER.size + len(body), commands.SIGN) + body)) == 0
    assert relay.commands == ["SIGN"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "80000000",
        "8000000000000009",
        "80000000000000094000000900000000",
        "80000000ffffffff4000000900000000ff",
        "80000000000000094000000900000100ff",
        "80000000" + "00000012" + 2 * "400000090000010000",
        "80000000" + "00000009" + "020000000000010000",
    ],
)
def test_only_a_single_password_is_replaced(body: str) -> None:
    data = bytes.fromhex(body)
    assert sign_request(HEADER.pack(SESSIONS, HEADER.size + len(data), commands.SIGN) + data) is None
    good = bytes.fromhex("80000000" + "00000009" + "400000090000010000")
    assert sign_request(HEADER.pack(NO_SESSIONS, HEADER.size + len(good), commands.SIGN) + good) is None
    request = sign_request(HEADER.pack(SESSIONS, HEADER.size + len(good), commands.SIGN) + good)
    assert request is not None
    assert (request.key, request.password, request.parameters) == (0x80000000, b"", b"")
