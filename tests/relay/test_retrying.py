"""A busy TPM is asked again with a bound; a dead connection is opened once more; nothing else is touched."""

from __future__ import annotations

import pytest

from tpm_mtls_relay import errors
from tpm_mtls_relay.connection.retrying import PATIENCE, Retrying
from tpm_mtls_relay.errors import ConnectionLostError, KeyGoneError, TransportError
from tpm_mtls_relay.loaded.objects import Objects
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, code_of, simple_command

KEY = 0x80000000
SIGN = simple_command(commands.SIGN, handles=(KEY,))
LOAD = simple_command(commands.LOAD, handles=(0x81000001,))
RANDOM = simple_command(commands.GET_RANDOM, b"\0\x08")
PUBLIC = bytes.fromhex("0023000b00040072000000100018000b000300100020") + bytes(32) + b"\0\x20" + bytes(32)


class Below:
    """A layer that answers what it is told to; the clock stands still but for the pauses."""

    def __init__(self, *answers: int | Exception | bytes) -> None:
        self._answers = list(answers)
        self.asked: list[bytes] = []
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self, command: bytes) -> bytes:
        self.asked.append(command)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else HEADER.pack(NO_SESSIONS, HEADER.size, answer)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retrying(self, objects: Objects | None = None) -> Retrying:
        return Retrying(self, objects or Objects(), sleep=self.sleep, clock=lambda: self.now)


BUSY = [0x908, 0x90A, 0x922, 0xB0908, 0xB090A, 0xB0922, 0xB0009]


@pytest.mark.parametrize("code", BUSY)
def test_a_busy_tpm_is_asked_again(code: int) -> None:
    below = Below(code, code, 0)
    assert code_of(below.retrying()(RANDOM)) == 0
    assert below.asked == [RANDOM] * 3
    assert below.pauses == [0.02, 0.04]


@pytest.mark.parametrize("code", BUSY)
def test_a_tpm_that_stays_busy_is_believed_after_some_seconds(code: int) -> None:
    below = Below(code)
    assert code_of(below.retrying()(RANDOM)) == code
    assert below.now < PATIENCE
    assert len(below.asked) == 8


@pytest.mark.parametrize("code", [0x902, 0x903, 0x904, 0x921, 0x98E, 0x910, 0x101, 0xB0902, 0xB0903, 0x84])
def test_every_other_refusal_goes_back_untouched(code: int) -> None:
    below = Below(code)
    assert code_of(below.retrying()(RANDOM)) == code
    assert below.asked == [RANDOM]


def test_a_self_test_that_goes_on_in_the_background_is_an_answer() -> None:
    below = Below(0x90A)
    assert code_of(below.retrying()(simple_command(commands.SELF_TEST, b"\0"))) == 0x90A
    assert len(below.asked) == 1


@pytest.mark.parametrize("command", [RANDOM, SIGN, LOAD])
def test_a_connection_that_was_dead_already_is_opened_again_for_any_command(command: bytes) -> None:
    below = Below(ConnectionLostError("dead", sent=False), 0)
    assert code_of(below.retrying()(command)) == 0
    assert below.asked == [command] * 2


@pytest.mark.parametrize("command", [RANDOM, SIGN])
def test_a_command_that_changes_nothing_is_repeated_after_the_connection_died(command: bytes) -> None:
    below = Below(ConnectionLostError("died", sent=True), 0)
    assert code_of(below.retrying()(command)) == 0


PASSWORD = bytes.fromhex("00000009 40000009 0000 00 0000")
POLICY = bytes.fromhex("00000009 03000000 0000 00 0000")


def test_a_command_that_changes_something_is_not_done_twice() -> None:
    for command in (LOAD, _signed_by(POLICY), simple_command(commands.EVICT_CONTROL, handles=(1, 2))):
        below = Below(ConnectionLostError("died", sent=True), 0)
        with pytest.raises(ConnectionLostError, match="died"):
            below.retrying()(command)
        assert below.asked == [command]


def test_a_password_is_no_session_that_would_be_used_up() -> None:
    below = Below(ConnectionLostError("died", sent=True), 0)
    assert code_of(below.retrying()(_signed_by(PASSWORD))) == 0


def test_a_second_dead_connection_is_an_error() -> None:
    below = Below(ConnectionLostError("died", sent=True))
    with pytest.raises(ConnectionLostError, match="died") as caught:
        below.retrying()(RANDOM)
    assert caught.value.code == errors.NO_TPM
    assert len(below.asked) == 2


@pytest.mark.parametrize("code", [errors.NO_TPM, errors.MALFORMED_RESPONSE])
def test_silence_and_garbage_are_not_asked_for_again(code: int) -> None:
    below = Below(TransportError("not in time", code))
    with pytest.raises(TransportError, match="not in time"):
        below.retrying()(RANDOM)
    assert below.asked == [RANDOM]


def test_a_key_that_went_with_the_connection_is_said_to_be_gone() -> None:
    objects = Objects()

    def dies(_command: bytes) -> bytes:
        objects.connection_lost(raw=False)
        raise ConnectionLostError("dead", sent=False)

    objects.load(KEY)
    with pytest.raises(KeyGoneError, match="went with a connection") as caught:
        Retrying(dies, objects)(SIGN)
    assert caught.value.code == errors.KEY_GONE
    assert objects.loaded == set()
    objects.load(KEY)  # loaded anew: it is another one
    objects.require(SIGN, dies)


def _key_answer(name: bytes) -> bytes:
    parameters = len(PUBLIC).to_bytes(2, "big") + PUBLIC + len(name).to_bytes(2, "big") + name + b"\0\0"
    return HEADER.pack(NO_SESSIONS, HEADER.size + len(parameters), 0) + parameters


def _lost_raw(name: bytes) -> Objects:
    objects = Objects()
    objects.load(KEY)
    objects.learn(KEY, PublicArea(PUBLIC, name))
    objects.load(0x02000000)
    objects.connection_lost(raw=True)
    return objects


def test_without_a_resource_manager_a_key_is_looked_for_after_the_connection_died() -> None:
    objects = _lost_raw(b"\0\x0bname")
    below = Below(_key_answer(b"\0\x0bname"))
    objects.require(SIGN, below)
    objects.require(SIGN, below)
    assert [code_of(command) for command in below.asked] == [commands.READ_PUBLIC]
    assert objects.loaded == {KEY, 0x02000000}


@pytest.mark.parametrize("answer", [0x910, _key_answer(b"\0\x0bother")])
def test_without_a_resource_manager_another_key_at_the_same_handle_is_not_used(answer: int | bytes) -> None:
    objects = _lost_raw(b"\0\x0bname")
    for _ in range(2):
        with pytest.raises(KeyGoneError, match="went with"):
            objects.require(SIGN, Below(answer))
    assert objects.loaded == {0x02000000}
    objects.require(RANDOM, Below(0))
    objects.require_handle(0x02000000, Below(0))  # a session has no Name: the TPM itself must say


def _signed_by(area: bytes) -> bytes:
    return HEADER.pack(SESSIONS, HEADER.size + 4 + len(area), commands.SIGN) + KEY.to_bytes(4, "big") + area
