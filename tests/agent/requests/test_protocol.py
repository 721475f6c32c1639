"""Where a request ends, whatever pieces it comes in, and what is none."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import UsageError
from tpm_mtls.secrets.protocol import MESSAGE_LIMIT, NAME_LIMIT, VALUE_LIMIT, Request
from tpm_mtls_agent.requests.protocol import RequestReader

GET = b'{"action":"get","name":"key"}'

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


def read(data: bytes, *cuts: int) -> Request | None:
    """What ``data`` asks when it comes in pieces; none if it is not complete at the end."""
    reader = RequestReader()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    complete = False
    for start, end in itertools.pairwise(places):
        complete = reader.feed(data[start:end])
    return reader.request() if complete else None


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \t "])
@pytest.mark.parametrize("beginning", [b"", b"\n "])
def test_an_object_is_complete_at_its_last_brace_with_or_without_a_newline(beginning: bytes, end: bytes) -> None:
    assert read(beginning + GET + end) == Request("get", "key")
    assert read(beginning + GET[:-1]) is None


def test_documented_requests_are_understood() -> None:
    assert read(b'{"action":"set","name":"third-party-api-key","value":"sk_live_abc123xyz"}') == Request(
        "set", "third-party-api-key", "sk_live_abc123xyz"
    )
    assert read(b'{"action":"get","name":"third-party-api-key"}') == Request("get", "third-party-api-key")
    assert read(b'{"action":"del","name":"third-party-api-key"}') == Request("del", "third-party-api-key")


@given(
    name=_text.filter(lambda text: len(text.encode()) <= NAME_LIMIT),
    value=_text,
    ascii_only=st.booleans(),
    indent=st.none() | st.integers(0, 4),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    order=st.permutations(["action", "name", "value"]),
)
def test_whatever_a_json_library_writes_is_read_however_it_is_cut(
    *, name: str, value: str, ascii_only: bool, indent: int | None, cuts: list[int], order: list[str]
) -> None:
    members = {"action": "set", "name": name, "value": value}
    text = json.dumps({each: members[each] for each in order}, ensure_ascii=ascii_only, indent=indent)

    assert read(text.encode(), *cuts) == Request("set", name, value)


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from('{}[]",:\\ax0 \n'), max_size=60).map(lambda s: "".join(s).encode())
)
def test_whatever_comes_is_a_request_or_an_error_and_the_same_in_pieces_as_at_once(data: bytes) -> None:
    def outcome(*cuts: int) -> str:
        try:
            return repr(read(data, *cuts))
        except UsageError as error:
            return str(error)

    whole, pieces = outcome(), outcome(*range(len(data)))
    # in pieces the end may be recognised before what follows it is seen
    assert (
        pieces in {whole, "there is something behind the request"} or whole == "there is something behind the request"
    )


def test_a_value_may_be_empty_and_of_any_characters() -> None:
    assert read(b'{"action":"set","name":"key","value":""}') == Request("set", "key", "")
    assert read(rb'{"action":"set","name":"k\"}{","value":"\u0000\\\ud83d\ude00"}') == Request(
        "set", 'k"}{', "\0\\\U0001f600"
    )


@pytest.mark.parametrize("value", [b"null", b'"old"'])
@pytest.mark.parametrize("action", ["get", "del"])
def test_a_value_that_is_not_needed_is_ignored(action: str, value: bytes) -> None:
    asked = read(b'{"action":"%s","name":"key","value":%s}' % (action.encode(), value))

    assert asked is not None
    assert (asked.action, asked.name) == (action, "key")


def test_the_largest_name_and_value_fit_even_if_every_byte_is_escaped() -> None:
    escaped = "".join(f"\\u{0x1F:04x}" for _ in range(VALUE_LIMIT))
    data = f'{{"action":"set","name":"{"é" * (NAME_LIMIT // 2)}","value":"{escaped}"}}'.encode()

    assert len(data) < MESSAGE_LIMIT
    assert read(data, *range(0, len(data), 1000)) == Request("set", "é" * (NAME_LIMIT // 2), "\x1f" * VALUE_LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(GET + GET, "something behind", id="two objects"),
        pytest.param(GET + b"x", "something behind", id="rubbish behind"),
        pytest.param(b"[" + GET + b"]", "no JSON object", id="an array"),
        pytest.param(b'"get"', "no JSON object", id="a string"),
        pytest.param(b"\xef\xbb\xbf" + GET, "no JSON object", id="a byte-order mark"),
        pytest.param(GET.decode().encode("utf-16"), "no JSON object", id="UTF-16"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "no JSON object", id="HTTP"),
        pytest.param(b"{}", "lacks its action or its name", id="empty"),
        pytest.param(b'{"action":"get"}', "lacks its action or its name", id="no name"),
        pytest.param(b'{"name":"key"}', "lacks its action or its name", id="no action"),
        pytest.param(b'{"action":"set","name":"key"}', "no value to set", id="no value"),
        pytest.param(b'{"action":"set","name":"key","value":null}', "no value to set", id="value null"),
        pytest.param(b'{"action":"list","name":"key"}', "action is unknown", id="unknown action"),
        pytest.param(b'{"action":"GET","name":"key"}', "action is unknown", id="capitals"),
        pytest.param(b'{"action":"get","name":5}', "is no string", id="name a number"),
        pytest.param(b'{"action":true,"name":"key"}', "is no string", id="action a boolean"),
        pytest.param(b'{"action":"set","name":"key","value":1}', "is no string", id="value a number"),
        pytest.param(b'{"action":"get","name":["key"]}', "an object or an array", id="name an array"),
        pytest.param(b'{"action":"set","name":"key","value":{}}', "an object or an array", id="value an object"),
        pytest.param(b'{"action":' + b"[" * 100_000, "an object or an array", id="deep"),
        pytest.param(
            b'{"action":"set","name":"key","value":"v","ttl":"5"}', "that no request has", id="unknown member"
        ),
        pytest.param(b'{"action":"get","name":"a","name":"b"}', "a member twice", id="name twice"),
        pytest.param(rb'{"action":"get","name":"a","n\u0061me":"b"}', "a member twice", id="name twice, escaped"),
        pytest.param(b'{"action":"get","name":"a","action":"del"}', "a member twice", id="action twice"),
        pytest.param(b"{" + b'"a":"b",' * 40 + b'"c":"d"}', "too many members", id="many members"),
        pytest.param(b"{" + b"," * 1000 + b"}", "too many members", id="many commas"),
        pytest.param(b'{"action":"get","name":"\xff"}', "is not UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"action":"get","name":"\xed\xa0\x80"}', "is not UTF-8", id="a surrogate in UTF-8"),
        pytest.param(rb'{"action":"get","name":"\ud800"}', "malformed JSON", id="half a surrogate pair"),
        pytest.param(b'{"action":"get","name":"a\nb"}', "malformed JSON", id="a bare newline"),
        pytest.param(b'{"action":"get","name":"key",}', "malformed JSON", id="a trailing comma"),
        pytest.param(b"{'action':'get','name':'key'}", "malformed JSON", id="single quotes"),
        pytest.param(b'{"action":"get","name":"key"x}', "malformed JSON", id="rubbish inside"),
        pytest.param(rb'{"action":"get","name":"a\u0000b"}', "a NUL", id="NUL in the name"),
        pytest.param(b'{"action":"get","name":""}', "the name has 0 bytes", id="an empty name"),
        pytest.param(
            b'{"action":"get","name":"%s"}' % (b"a" * (NAME_LIMIT + 1)), "the name has 256 bytes", id="a long name"
        ),
        pytest.param(
            b'{"action":"get","name":"%s"}' % ("é" * 128).encode(), "the name has 256 bytes", id="a long name, encoded"
        ),
        pytest.param(
            b'{"action":"set","name":"key","value":"%s"}' % (b"v" * (VALUE_LIMIT + 1)),
            "the value has 65537 bytes",
            id="a long value",
        ),
        pytest.param(
            b'{"action":"set","name":"key","value":"%s"}' % (b"v" * 1_000_000), f"more than {MESSAGE_LIMIT}", id="1 MB"
        ),
        pytest.param(b" " * (MESSAGE_LIMIT + 1), f"more than {MESSAGE_LIMIT}", id="white space without end"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read(data)


@pytest.mark.parametrize("data", [b'{"action":"my-secret","name":"x"}', b'{"my-secret":"x","action":"get"}'])
def test_an_error_repeats_nothing_of_the_request(data: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        read(data)

    assert "my-secret" not in f"{caught.value} {caught.value.hint}"
