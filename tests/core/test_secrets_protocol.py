"""The agent's messages."""

from __future__ import annotations

import json

import pytest

from tpm_mtls.errors import (
    AccessDeniedError,
    AgentRefusedError,
    NoSuchSecretError,
    ResponseError,
    StateError,
    TpmMtlsError,
    UsageError,
)
from tpm_mtls.response_codes import tpm_error
from tpm_mtls.secrets.protocol import (
    MESSAGE_LIMIT,
    Done,
    Failed,
    decode_answer,
    encode_answer,
    encode_request,
    failed,
    request,
)


def test_requests_are_written_as_documented() -> None:
    assert encode_request(request("set", "third-party-api-key", "sk_live_abc123xyz")) == (
        b'{"action":"set","name":"third-party-api-key","value":"sk_live_abc123xyz"}'
    )
    assert encode_request(request("get", "third-party-api-key")) == b'{"action":"get","name":"third-party-api-key"}'
    assert encode_request(request("del", "third-party-api-key")) == b'{"action":"del","name":"third-party-api-key"}'


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("", "v", "the name has 0 bytes"),
        ("n" * 256, "v", "the name has 256 bytes"),
        ("a\0b", "v", "a NUL"),
        ("\ud800", "v", "the name is no Unicode text"),
        ("n", "\ud800", "the value is no Unicode text"),
        ("n", "v" * 65537, "the value has 65537 bytes"),
        ("n", None, "no value to set"),
    ],
)
def test_what_no_agent_takes_is_refused_before_it_is_sent(name: str, value: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        request("set", name, value)


def test_answers_are_written_as_documented() -> None:
    assert encode_answer(Done(index="0x01520042")) == b'{"ok":true,"index":"0x01520042"}'
    assert encode_answer(Done(value="sk_live_abc123xyz")) == b'{"ok":true,"value":"sk_live_abc123xyz"}'
    assert encode_answer(Done()) == b'{"ok":true}'
    assert encode_answer(Failed("what went wrong", "0x921")) == b'{"error":"what went wrong","rc":"0x921"}'


@pytest.mark.parametrize(
    ("error", "rc"),
    [
        (NoSuchSecretError("no secret has that name", hint="h"), "0x18b"),
        (tpm_error(0x14B, doing="keep the secret", tcti="swtpm:"), "0x14b"),
        (tpm_error(0x921, doing="read the secret", tcti="swtpm:"), "0x921"),
        (tpm_error(0x99D, doing="read the secret", tcti="swtpm:"), "0x99d"),
        (tpm_error(0x9A2, doing="read the secret", tcti="swtpm:"), "0x9a2"),
        (tpm_error(0x98E, doing="read the secret", tcti="swtpm:"), "0x98e"),
        (AccessDeniedError("you may not", hint="h"), "0x0"),
        (StateError("damaged", hint="h"), "0x0"),
    ],
)
def test_an_error_is_answered_with_cause_remedy_and_the_tpms_code(error: TpmMtlsError, rc: str) -> None:
    answer = json.loads(encode_answer(failed(error)))

    assert answer == {"error": f"{error}; {error.hint}", "rc": rc}


def test_an_error_comes_back_as_an_error() -> None:
    with pytest.raises(AgentRefusedError, match="full") as caught:
        decode_answer(b'{"error":"the NV memory is full; remove something; or not","rc":"0x14B"}')

    assert (str(caught.value), caught.value.hint) == ("the NV memory is full", "remove something; or not")


def test_an_unknown_name_can_be_told_from_other_errors() -> None:
    with pytest.raises(NoSuchSecretError, match="no secret has that name"):
        decode_answer(encode_answer(failed(NoSuchSecretError("no secret has that name", hint="set it first"))))


def test_an_error_without_a_remedy_gets_one() -> None:
    with pytest.raises(AgentRefusedError, match="not found") as caught:
        decode_answer(b'{"error":"not found","rc":"0x1"}\n')

    assert caught.value.hint


def test_another_daemons_additions_are_ignored() -> None:
    assert decode_answer(b' {"ok":true,"value":"v","slot":3}\n') == Done(value="v")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff",
        b"{}",
        b'{"ok":false}',
        b'{"ok":"yes"}',
        b'{"error":"no"}',
        b'{"error":"no","rc":"zero"}',
        b'{"ok":true}' + b" " * MESSAGE_LIMIT,
    ],
)
def test_what_is_no_answer_is_said_so(data: bytes) -> None:
    with pytest.raises(ResponseError, match=r"the answer at /run/tpmd\.sock is none of an agent"):
        decode_answer(data)
