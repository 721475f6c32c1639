"""The trace tells what a command was about, in words: real programs' commands."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm2_pytss.constants import TPM2_CC

from support.tpm_commands import OWNER, DirectTpm, get_capability, with_password
from support.tracing import Recorder
from tpm_mtls.trace.commands import COMMAND_NAMES as READERS_NAMES
from tpm_mtls_relay.loaded.key_kinds import kind_of_signature
from tpm_mtls_relay.messages.command_names import ANSWERED_WITH_HANDLE, COMMAND_NAMES
from tpm_mtls_relay.messages.commands import handle_count
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, simple_command
from tpm_mtls_relay.observers.facts import facts_of, session_words
from tpm_mtls_relay.observers.reporter import Reporter, program_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from support.tracing import Exchanged

SIGNING = "sign|userwithauth|sensitivedataorigin|fixedtpm|fixedparent"


def told(exchanged: Exchanged, folder: Path) -> list[dict[str, Any]]:
    """The lines of the trace."""
    file = folder / "trace.jsonl"
    file.unlink(missing_ok=True)
    reporter = Reporter(str(file), 4711, "program")
    for command, response in exchanged:
        reporter(command, response, 1.5, 0.25)
    reporter.close()
    return [json.loads(line) for line in file.read_text().splitlines()]


def only(lines: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The line of the one command of that name that succeeded."""
    (line,) = [line for line in lines if line["command"] == command and line["response_code"] == 0]
    return line


def test_the_names_are_those_of_libtss2_and_the_reader_has_the_same() -> None:
    known = {int(getattr(TPM2_CC, name)) for name in dir(TPM2_CC) if not name.startswith("_") and name[0].isupper()}
    assert {code: name for code, name in COMMAND_NAMES.items() if getattr(TPM2_CC, name, None) != code} == {}
    assert known - set(COMMAND_NAMES) <= {0x20000000}  # Vendor_TCG_Test
    assert READERS_NAMES == COMMAND_NAMES
    assert {code for code in range(0x11F, 0x199) if handle_count(code) is not None} == {
        code for code in COMMAND_NAMES if code <= 0x198
    }


def test_handles_in_commands_and_responses_are_those_of_the_tpms_own_list(tpm: SimulatedTpm) -> None:
    reader = Reader(DirectTpm(tpm)(get_capability(2, 0x11F, 256)), HEADER.size + 5)
    attributes = [reader.number(4) for _ in range(reader.number(4))]  # TPMA_CC: part 2, 8.9
    assert len(attributes) > 100
    for each in attributes:
        code = each & 0xFFFF
        if not each >> 29 & 1:  # not the vendor's
            assert handle_count(code) == each >> 25 & 7, hex(code)
            assert (code in ANSWERED_WITH_HANDLE) == bool(each >> 28 & 1), hex(code)


def test_a_line_says_who_when_how_long_and_how_it_ended(tmp_path: Path) -> None:
    random = simple_command(0x17B, b"\0\x08")
    (line,) = told([(random, HEADER.pack(NO_SESSIONS, 10, 0x922))], tmp_path)
    assert line == {
        "time": 1.5,
        "seconds": 0.25,
        "pid": 4711,
        "program": "program",
        "code": 0x17B,
        "command": "GetRandom",
        "response_code": 0x922,
        "handles": [],
        "sessions": [],
        "keys": [],
        "details": {"bytes": 8},
        "command_bytes": 12,
        "response_bytes": 10,
    }


def test_a_key_is_told_by_handle_kind_and_name_until_it_is_flushed(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "message").write_bytes(b"hello")
    exchanged = record("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    tpm.flush()
    exchanged += record("tpm2_create", "-C", "p.ctx", "-G", "ecc", "-a", SIGNING, "-u", "k.pub", "-r", "k.priv")
    tpm.flush()
    exchanged += record("tpm2_load", "-C", "p.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx", "-n", "k.name")
    tpm.flush()
    name = (tmp_path / "k.name").read_bytes().hex()
    lines = told(exchanged, tmp_path)
    primary = only(lines, "CreatePrimary")
    assert primary["handles"] == ["0x40000001"]
    assert primary["details"] == {"made": "0x80000000", "kind": "ecc-p256"}
    loaded = only(lines, "Load")
    assert loaded["keys"][-1] == {"handle": loaded["details"]["made"], "kind": "ecc-p256", "name": name}
    assert only(lines, "Create")["details"] == {"kind": "ecc-p256"}
    handle = int(loaded["details"]["made"], 16)
    flushed = simple_command(0x165, handle.to_bytes(4, "big"))
    unnamed = simple_command(0x162, handles=(handle,))
    success = HEADER.pack(NO_SESSIONS, 10, 0)
    load = [pair for pair in exchanged if pair[0][6:10] == bytes.fromhex("00000157")][-1]
    lines = told([load, (unnamed, success), (flushed, success), (unnamed, success)], tmp_path)
    assert [bool(line["keys"]) for line in lines] == [True, True, False, False]
    assert lines[2]["details"] == {"flushed": f"{handle:#010x}"}


def test_a_persistent_key_is_the_transient_one_until_it_is_evicted(tpm: SimulatedTpm, tmp_path: Path) -> None:
    made = Recorder(tpm, tmp_path)("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    tpm.flush()
    creation = next(pair for pair in made if pair[0][6:10] == bytes.fromhex("00000131"))
    persistent = (0x81000100).to_bytes(4, "big")
    success = HEADER.pack(NO_SESSIONS, 10, 0)
    persisted = (with_password(0x120, persistent, handles=(OWNER, 0x80000000)), success)
    evicted = (with_password(0x120, persistent, handles=(OWNER, 0x81000100)), success)
    other = (with_password(0x120, persistent, handles=(OWNER, 0x80000007)), success)
    use = (with_password(0x15D, handles=(0x81000100,)), HEADER.pack(NO_SESSIONS, 10, 0x98E))
    lines = told([creation, persisted, use, evicted, use, other, use], tmp_path)
    assert [bool(line["keys"]) for line in lines] == [True, True, True, True, False, False, False]
    assert lines[2]["keys"] == [lines[0]["keys"][0] | {"handle": "0x81000100"}]
    assert lines[1]["details"] == {"persistent": "0x81000100"}


def test_what_a_signature_is_is_told_from_the_signature(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "message").write_bytes(b"hello")
    kinds = {}
    for algorithm, options in (("ecc256", []), ("ecc384", ["-g", "sha384"]), ("rsa2048", ["-s", "rsapss"])):
        record("tpm2_createprimary", "-C", "o", "-G", f"{algorithm}:null:null", "-a", SIGNING, "-c", "p.ctx")
        tpm.flush()
        exchanged = record("tpm2_sign", "-c", "p.ctx", *options, "-o", "signature", "message")
        tpm.flush()
        kinds[algorithm] = only(told(exchanged, tmp_path), "Sign")["details"]
    assert kinds == {
        "ecc256": {"scheme": "ecdsa-sha256", "kind": "ecc-p256"},
        "ecc384": {"scheme": "ecdsa-sha384", "kind": "ecc-p384"},
        "rsa2048": {"scheme": "rsapss-sha256", "kind": "rsa-2048"},
    }


def test_signatures_of_other_kinds() -> None:
    assert kind_of_signature(Reader(bytes.fromhex("0005 000b") + bytes(32))) == ("hmac-sha256", "keyedhash")
    huge = (b"\0\x60" + bytes(96)) * 2
    assert kind_of_signature(Reader(bytes.fromhex("0018 000b") + huge)) == ("ecdsa-sha256", "")
    assert kind_of_signature(Reader(bytes.fromhex("7fff 000b"))) == ("0x7fff-sha256", "")


def test_attestations_quotes_and_their_verification(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    record("tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
    tpm.flush()
    made = record("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-u", "ak.pub", "-n", "ak.name")
    tpm.flush()
    assert {"policy", "hmac"} & {word for line in told(made, tmp_path) for word in line["sessions"]}
    quoted = record("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,7", "-m", "m", "-s", "s", "-o", "pcrs", "-q", "ab")
    tpm.flush()
    quote = only(told(quoted, tmp_path), "Quote")
    assert quote["details"] == {"scheme": "ecdsa-sha256", "pcrs": "sha256:0,7", "kind": "ecc-p256"}
    certified = record("tpm2_certify", "-c", "ak.ctx", "-C", "ak.ctx", "-g", "sha256", "-o", "a", "-s", "cs")
    tpm.flush()
    assert only(told(certified, tmp_path), "Certify")["details"] == {"scheme": "ecdsa-sha256", "kind": "ecc-p256"}
    record("tpm2_loadexternal", "-C", "n", "-u", "ak.pub", "-c", "public.ctx")
    tpm.flush()
    verified = record("tpm2_verifysignature", "-c", "public.ctx", "-g", "sha256", "-m", "m", "-s", "s")
    tpm.flush()
    assert only(told(verified, tmp_path), "VerifySignature")["details"] == {
        "scheme": "ecdsa-sha256",
        "kind": "ecc-p256",
    }


@pytest.mark.parametrize(
    ("tool", "command", "details"),
    [
        (["tpm2_getrandom", "8"], "GetRandom", {"bytes": 8}),
        (["tpm2_pcrread", "sha1:3+sha256:0,7,23"], "PCR_Read", {"pcrs": "sha1:3+sha256:0,7,23"}),
        (["tpm2_hash", "-C", "n", "-g", "sha384", "-o", "d", "data"], "Hash", {"hash": "sha384", "bytes": 5}),
        (["tpm2_selftest"], "SelfTest", {}),
        (["tpm2_shutdown"], "Shutdown", {"type": "state"}),
        (["tpm2_startup", "-c"], "Startup", {"type": "clear"}),
        (
            ["tpm2_getcap", "properties-fixed"],
            "GetCapability",
            {"capability": "tpm-properties", "from": "0x100", "count": 127},
        ),
        (
            ["tpm2_nvdefine", "0x1500001", "-C", "o", "-s", "24"],
            "NV_DefineSpace",
            {"index": "0x01500001", "bytes": 24},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_details(
    tpm: SimulatedTpm, tmp_path: Path, tool: list[str], command: str, details: dict[str, str | int]
) -> None:
    (tmp_path / "data").write_bytes(b"hello")
    exchanged = Recorder(tpm, tmp_path)(*tool, check=tool[0] != "tpm2_startup")
    lines = [line for line in told(exchanged, tmp_path) if line["command"] == command]
    assert details in [line["details"] for line in lines]


def test_details_of_indexes_and_policies(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "data").write_bytes(b"12345678")
    exchanged = record("tpm2_nvdefine", "0x1500001", "-C", "o", "-s", "8")
    exchanged += record("tpm2_nvwrite", "0x1500001", "-C", "o", "-i", "data")
    exchanged += record("tpm2_nvread", "0x1500001", "-C", "o", "-s", "4", "--offset", "2")
    exchanged += record("tpm2_startauthsession", "--policy-session", "-S", "s.ctx")
    for tool in (
        ("tpm2_policypcr", "-S", "s.ctx", "-l", "sha256:0", "-L", "a"),
        ("tpm2_policycommandcode", "-S", "s.ctx", "TPM2_CC_Sign"),
        ("tpm2_policyor", "-S", "s.ctx", "-l", "sha256:a,a", "-L", "o"),
        ("tpm2_flushcontext", "s.ctx"),
    ):
        exchanged += record(*tool, check=tool[0] != "tpm2_policyor")
    lines = told(exchanged, tmp_path)
    by_command = {line["command"]: line["details"] for line in lines}
    assert by_command["NV_Write"] == {"bytes": 8, "offset": 0}
    assert by_command["NV_Read"] == {"bytes": 4, "offset": 2}
    assert by_command["NV_ReadPublic"] == {"index": "0x01500001", "bytes": 8}
    assert by_command["PolicyPCR"] == {"pcrs": "sha256:0"}
    assert by_command["PolicyCommandCode"] == {"only": "Sign"}
    assert by_command["PolicyOR"] == {"branches": 2}
    assert {"session": "policy", "hash": "sha256", "made": "0x03000000"} in [line["details"] for line in lines]


def test_an_encrypted_public_area_is_not_taken_for_one() -> None:
    area = bytes.fromhex("02000000 0000 60 0000")  # an HMAC session that decrypts and encrypts
    body = (0x81000100).to_bytes(4, "big") + len(area).to_bytes(4, "big") + area
    command = HEADER.pack(SESSIONS, 10 + len(body), 0x173) + body
    parameters = b"\0\x08" + bytes.fromhex("0023 000b 00000000") + b"\0\x02\0\x0b" + b"\0\0"
    response = HEADER.pack(SESSIONS, 14 + len(parameters), 0) + len(parameters).to_bytes(4, "big") + parameters
    assert facts_of(command, response)[1:] == ("", {})
    assert session_words(command) == ["hmac"]
    index = command.replace(bytes.fromhex("00000173"), bytes.fromhex("00000169"))
    assert facts_of(index, response)[1:] == ("", {})


@given(
    code=st.sampled_from(sorted(COMMAND_NAMES)),
    rest=st.binary(max_size=120),
    answered=st.binary(max_size=120),
    sessions=st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_any_bytes_make_a_line_of_json_that_a_pipe_takes_in_one_piece(
    code: int,
    rest: bytes,
    answered: bytes,
    sessions: bool,  # noqa: FBT001 - given by name
) -> None:
    import tempfile
    from pathlib import Path

    tag = SESSIONS if sessions else NO_SESSIONS
    command = HEADER.pack(tag, 10 + len(rest), code) + rest
    response = HEADER.pack(tag, 10 + len(answered), 0) + answered
    with tempfile.TemporaryDirectory() as folder:
        (line,) = told([(command, response)], Path(folder))
    assert line["command"] == COMMAND_NAMES[code]
    assert len(json.dumps(line)) < 4000


def test_the_program_is_the_first_ancestor_that_is_no_relay(tmp_path: Path) -> None:
    def process(pid: int, parent: int, name: str, *arguments: str) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0")
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1")
        (folder / "comm").write_text(f"{name}\n")

    process(10, 1, "cu) rl\x1b[", "/usr/bin/curl", "https://backend.example")
    process(11, 10, "python", "/usr/bin/python", "-I", "-S", "/lib/tpm_mtls_relay/__main__.py", "--tcti", "x")
    assert program_of(10, processes=str(tmp_path)) == (10, "cu) rl?[")
    assert program_of(11, processes=str(tmp_path)) == (10, "cu) rl?[")
    assert program_of(12, processes=str(tmp_path)) == (12, "")
    assert program_of(os.getpid())[0] == os.getpid()
