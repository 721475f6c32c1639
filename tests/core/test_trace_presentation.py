"""How the trace looks: to a person, and to a script."""

from __future__ import annotations

import json

import msgspec
import pytest

from tpm_mtls.trace.presentation import JsonLines, TextLines
from tpm_mtls.trace.records import Key, Record, Summary, parse_record

SIGNED = Record(
    time=100.25,
    seconds=0.06021,
    pid=4711,
    program="curl",
    code=0x15D,
    command="Sign",
    response_code=0,
    handles=["0x81000100"],
    sessions=["password"],
    keys=[Key(handle="0x81000100", kind="ecc-p256", name="000b0123456789abcdef")],
    details={"scheme": "ecdsa-sha256", "kind": "ecc-p256"},
    command_bytes=107,
    response_bytes=96,
)
ESCAPE = "\x1b["


def changed(**fields: object) -> Record:
    return msgspec.structs.replace(SIGNED, **fields)


def test_a_line_shows_when_how_long_which_command_which_key_and_how() -> None:
    lines = TextLines(color=False)
    assert lines.line(SIGNED).splitlines() == [
        "TPM  curl (4711)",
        "TPM*    +0.000 s      60.21 ms  Sign               0x81000100  ecc-p256 000b01234567…  ecdsa-sha256",
    ]


def test_the_program_is_named_where_it_changes_and_times_count_from_the_first_command() -> None:
    lines = TextLines(color=False)
    lines.line(SIGNED)
    assert "\n" not in lines.line(SIGNED)
    program, line = lines.line(changed(pid=4712, program="nginx", time=101.0)).splitlines()
    assert program == "TPM  nginx (4712)"
    assert "+0.750 s" in line


def test_only_signatures_are_marked() -> None:
    lines = TextLines(color=False)
    assert lines.line(changed(command="Hash")).splitlines()[-1].startswith("TPM  ")
    assert lines.line(SIGNED).startswith("TPM* ")


def test_a_refusal_says_why() -> None:
    refused = changed(response_code=0x99D, details={}, keys=[])
    assert TextLines(color=False).line(refused).endswith("0x81000100  refused: TPM_RC_POLICY_FAIL, session 1, 0x99d")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"handles": ["0x40000001", "0x00000007"]}, "owner  pcr-7"),
        ({"details": {"bytes": 32}}, "32 bytes"),
        ({"details": {"made": "0x80000000", "kind": "rsa-2048"}}, "→ 0x80000000  rsa-2048"),
        ({"details": {"pcrs": "sha256:0,7"}}, "sha256:0,7"),
        ({"details": {"index": "0x01500001"}}, "index 0x01500001"),
        ({"sessions": ["policy"]}, "policy session"),
        ({"keys": [Key(handle="0x80000000", kind="", name="000b")]}, "000b…"),
    ],
)
def test_details_are_told_in_words(fields: dict[str, object], words: str) -> None:
    blank: dict[str, object] = {"handles": [], "sessions": [], "keys": [], "details": {}}
    assert TextLines(color=False).line(changed(**(blank | fields))).endswith(f"  {words}")


def test_a_terminal_gets_colours_and_bars_and_nothing_else_does() -> None:
    terminal, file = TextLines(color=True), TextLines(color=False)
    assert f"{ESCAPE}32m{ESCAPE}1mTPM* " in terminal.line(SIGNED)
    assert f"{ESCAPE}31mTPM* " in terminal.line(changed(response_code=0x922))
    assert ESCAPE not in terminal.line(changed(command="Hash"))
    assert ESCAPE not in file.line(SIGNED) + file.line(changed(response_code=0x922))
    assert "█" not in file.line(SIGNED)


def test_the_bar_grows_with_the_time() -> None:
    terminal = TextLines(color=True)
    lengths = [terminal.line(changed(seconds=seconds)).count("█") for seconds in (0, 1e-4, 1e-3, 0.01, 0.2, 1, 300)]
    assert lengths == [0, 0, 2, 5, 8, 10, 10]


def test_the_summary_counts_commands_signatures_and_time() -> None:
    summary = Summary()
    for record in [SIGNED] * 3 + [changed(command="Hash", seconds=0.01, response_code=0x922)]:
        summary.add(record)
    assert TextLines(color=False).summary(summary, command="curl", status=0).splitlines() == [
        "TPM      3  Sign                   181 ms  60.2 ms each",
        "TPM      1  Hash                  10.0 ms",
        "TPM  4 commands, 3 of them Sign, 1 refused, 191 ms in the TPM",
    ]
    assert TextLines(color=True).summary(summary, command="curl", status=0).endswith(f"in the TPM{ESCAPE}0m")


def test_the_summary_of_one_command_is_one_line() -> None:
    summary = Summary()
    summary.add(changed(command="GetRandom", seconds=0.0004))
    assert TextLines(color=False).summary(summary, command="curl", status=3) == (
        "TPM  1 command, 0.4 ms in the TPM, curl ended with status 3"
    )


def test_a_program_that_did_not_use_the_tpm_is_told_so() -> None:
    said = TextLines(color=False).summary(Summary(), command="true", status=0)
    assert said.startswith("TPM  no command reached the TPM: true does not use it")


def test_json_has_the_record_and_the_result_in_words() -> None:
    line = json.loads(JsonLines().line(changed(response_code=0x922)))
    assert line["result"] == "TPM_RC_RETRY, 0x922"
    del line["result"]
    assert parse_record(json.dumps(line).encode()) == changed(response_code=0x922)


def test_json_has_the_sum() -> None:
    summary = Summary()
    summary.add(SIGNED)
    assert json.loads(JsonLines().summary(summary, command="curl", status=0)) == {
        "summary": {
            "program": "curl",
            "exit_status": 0,
            "commands": 1,
            "sign": 1,
            "errors": 0,
            "seconds_in_tpm": 0.06021,
            "by_command": {"Sign": {"count": 1, "seconds": 0.06021, "errors": 0}},
        }
    }


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"\xff", b'{"time": 1}', b"x" * 5000])
def test_a_line_that_no_relay_wrote_is_no_record(line: bytes) -> None:
    assert parse_record(line) is None
