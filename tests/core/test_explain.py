"""``tpm-mtls explain`` finds the codes that somebody means, and says what they mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpm_mtls.cli import run
from tpm_mtls.errors import UsageError
from tpm_mtls.explain.presentation import facts, words
from tpm_mtls.explain.reading import other_reading, read_codes

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("0x9a2", [0x9A2]),
        (" 0X9A2\n", [0x9A2]),
        ("0x000009a2", [0x9A2]),
        ("2466", [0x9A2]),
        ("9a2", [0x9A2]),
        ("0", [0]),
        ("0x1bf", [0x1BF]),
        ("0xffffffff", [0xFFFFFFFF]),
        ("TPM_RC_BAD_AUTH", [0xA2]),
        ("TPM2_RC_BAD_AUTH", [0xA2]),
        ("bad_auth", [0xA2]),
        ("POLICY_MISSING", [0xBF950]),
        ("TSS2_TCTI_RC_IO_ERROR", [0xA000A]),
        ("0x9a2 0x99d 0x9a2", [0x9A2, 0x99D]),
        ("tpm tpm0: A TPM error (2306) occurred attempting to load a key", [0x902]),
        ("tpm tpm0: tpm2_load_context: failed with a TPM error 0x0910", [0x910]),
        ("ERROR:esys:src/tss2-esys/api/Esys_Sign.c:329:Esys_Sign_Finish() ErrorCode (0x000a000a)", [0xA000A]),
        ("ERROR: Esys_Load(0x1DF) - tpm:parameter(1):integrity check failed", [0x1DF]),
        ("40B7:error:4000000B:tpm2::cannot load key::-1:479 tpm:parameter(1):integrity check failed", [0x1DF]),
        ("655370 tcti:IO failure", [0xA000A]),
        ("tcti:IO failure", [0xA000A]),
        ("Failed to unseal HMAC key in TPM: tpm:parameter(1):integrity check failed", [0x1DF]),
        ("TSS2_Exception: tpm:session(1):a policy check failed", [0x99D]),
        ("Failed to load: tpm:warn(2.0): out of memory for object contexts", [0x902]),
        ("921", [0x921]),  # 921 itself is no code
        ('{"error": "…", "rc": 2461}', [0x99D]),
        ("rc=2461", [0x99D]),
        ("tpm-mtls: error: cannot sign: … (TPM_RC_POLICY_FAIL, session 1, 0x99d)", [0x99D]),
        ("- the key at 0x81000001 is gone: TPM_RC_REFERENCE_H0", [0x910]),
        ("Esys_Unseal returned TPM2_RC_POLICY_FAIL", [0x9D]),
        ("TPM_RC_LOCKOUT (0x921)", [0x921]),
    ],
)
def test_codes_are_found(text: str, codes: list[int]) -> None:
    assert list(read_codes(text)) == codes


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("", "no response code in that", "tpm-mtls doctor"),
        ("the handle 0x81000001 and 0x1bf, after 0x501", "no response code in that", "as a line of a log"),
        ("error code 99999999999999", "no response code in that", "--help"),
        ("rc=9999999999", "no response code in that", "--help"),
        ("tpm:handle(1):no such words", "no response code in that", "tpm-mtls doctor"),
        ("tpm_crb MSFT0101:00: probe failed with error -16", "the kernel's own error EBUSY: device or", "dmesg"),
        ("tpm tpm0: tpm_transmit: error -999", "the kernel's own error unknown", "dmesg"),
        ("an error -16", "no response code in that", "tpm-mtls doctor"),
        ("TPM_RC_NONSENSE is no code", "no response code in that", "by its name"),
        ("POLICY_FIAL", "no response code is called POLICY_FIAL", "did you mean TPM_RC_POLICY_FAIL"),
        ("0x9g2", "no response code is called 0x9g2", "0x9a2"),
        ("0x1ffffffff", "has 32 bits", "decimal"),
        ("4294967296", "has 32 bits", "decimal"),
        ("9" * 8000, "has 32 bits", "decimal"),
        ("9" * 9000, "longer than 8192 characters", "one line"),
    ],
)
def test_what_holds_no_code_is_refused(text: str, error: str, hint: str) -> None:
    with pytest.raises(UsageError, match=error) as refused:
        read_codes(text)
    assert hint in refused.value.hint


@settings(max_examples=50)  # an unknown word is compared with all names
@given(st.text() | st.from_regex(r"(rc|0x|TPM_RC_)?[ =0-9a-fxX()A-Z_:-]{0,30}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        codes = read_codes(text)
    except UsageError:
        return
    assert codes
    for code in codes:
        assert 0 <= code < 1 << 32
        assert f"{code:#05x}" in words(code)


def test_a_number_that_may_be_hexadecimal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert other_reading("910") == 0x910  # 910 is 0x38e
    assert other_reading("902") is None  # 902 is no code, and so was read as 0x902
    assert other_reading("2466") is None  # 0x2466 is no code
    assert other_reading("0x902") is None
    assert other_reading("123456789") is None
    assert run(["explain", "910"]) == 0
    assert "as a hexadecimal one: tpm-mtls explain 0x910" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "about"),
    [
        (0x9A2, "session 1: the command's first session, as a rule the one that authorizes"),
        (0xA9D, "session 2: the command's second session\n"),
        (0x2D6, "parameter 2: the command's second parameter\n"),
        (0xFD5, "parameter 15: the command's 15th parameter\n"),
        (0x18B, "handle 1: the command's first handle\n"),
        (0x8A2, "a session\n"),
        (0x0A2, "nothing; for the first handle, parameter or session it is 0x1a2, 0x1e2 or 0x9a2"),
    ],
)
def test_what_a_code_is_about_is_said_in_words(code: int, about: str) -> None:
    assert f"\n  about   {about}" in words(code)
    assert "\n  about" not in words(0x902)
    assert "\n  about" not in words(0xA000A)


@pytest.mark.parametrize(
    ("code", "error", "status"),
    [
        (0x9A2, "AuthorizationError", 4),
        (0x1E, "TpmVersionError", 3),
        (0xA000A, "TpmUnavailableError", 3),
        (0xBF950, "PolicyError", 5),
        (0x921, "TpmLockoutError", 4),
        (0x1BF, "TpmRefusedError", 4),
        (0, None, 0),
    ],
)
def test_the_error_is_the_one_that_a_command_ends_with(code: int, error: str | None, status: int) -> None:
    assert (facts(code)["error"], facts(code)["exit_status"]) == (error, status)
    assert words(code).endswith(f"error   {error or 'none'}, exit status {status}")


def test_a_person_reads_layer_meaning_causes_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "0x9a2"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "TPM_RC_BAD_AUTH (0x9a2, 2466)"
    assert lines[1] == "  from    the TPM itself"
    assert "  means   wrong or missing authorization value" in lines
    assert "  do      give the right one: --auth prompt, file:F or credential:NAME" in lines
    assert "often called a policy failure. It is none" in out
    assert "0x99d" in out
    assert max(map(len, lines)) <= 100


def test_a_program_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--json", "-", "Esys_Unseal(0x99D)", "-", "0xbf953"]) == 0
    codes = json.loads(capsys.readouterr().out)["codes"]
    assert [code["hex"] for code in codes] == ["0x99d", "0xbf953"]
    assert codes[0]["name"] == "TPM_RC_POLICY_FAIL"
    assert codes[0]["layer"] == "the TPM itself"
    assert codes[0]["about"] == "session 1"
    assert codes[0]["causes"]
    assert "tpm-mtls policy check" in codes[0]["remedy"]
    assert "It is not 0x9a2" in codes[0]["note"]
    assert "relay" in codes[1]["layer"]


def test_an_unknown_code_is_taken_apart_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "0x1bf", "--json"]) == 0
    (code,) = json.loads(capsys.readouterr().out)["codes"]
    assert (code["name"], code["layer"], code["about"], code["causes"]) == (None, "the TPM itself", "handle 1", [])
    assert run(["explain", "0x501"]) == 0
    assert "the TPM's maker has defined" in capsys.readouterr().out


def test_what_is_no_code_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "POLICY_FIAL"]) == 2
    assert "hint: did you mean TPM_RC_POLICY_FAIL" in capsys.readouterr().err
    assert run(["explain"]) == 2
    assert "tpm-mtls: error: missing argument" in capsys.readouterr().err


def refusal(tpm: SimulatedTpm, *command: str, cwd: Path) -> tuple[int, ...]:
    """What a tool's own lines are about when the TPM refuses its command."""
    done = tpm.tool(*command, cwd=cwd, check=False)
    assert done.returncode != 0
    tpm.tool("tpm2_flushcontext", "--transient-object")
    return read_codes(done.stderr)


def seal(tpm: SimulatedTpm, name: str, *options: str, cwd: Path) -> None:
    """Seals something under the primary key, loads it and keeps its context in ``NAME.ctx``."""
    (cwd / "data").write_text("data")
    parts = ("-u", f"{name}.pub", "-r", f"{name}.priv")
    tpm.tool("tpm2_create", "-C", "primary.ctx", "-i", "data", *options, *parts, cwd=cwd)
    tpm.flush()
    tpm.tool("tpm2_load", "-C", "primary.ctx", *parts, "-c", f"{name}.ctx", cwd=cwd)
    tpm.flush()


def test_a_wrong_password_is_0x9a2_or_0x98e_and_other_pcrs_are_0x99d(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """What docs/reference/response-codes.md promises, answered by a TPM and read from tpm2-tools' own lines."""
    without_counting = ("-a", "fixedtpm|fixedparent|userwithauth|noda")
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "primary.ctx", cwd=tmp_path)
    tpm.flush()
    seal(tpm, "noda", "-p", "right", *without_counting, cwd=tmp_path)
    assert refusal(tpm, "tpm2_unseal", "-c", "noda.ctx", "-p", "wrong", cwd=tmp_path) == (0x9A2,)

    tpm.tool("tpm2_createpolicy", "--policy-pcr", "-l", "sha256:16", "-L", "policy", cwd=tmp_path)
    seal(tpm, "policy", "-L", "policy", "-a", "fixedtpm|fixedparent|noda", cwd=tmp_path)
    tpm.tool("tpm2_pcrextend", f"16:sha256={'11' * 32}")
    assert refusal(tpm, "tpm2_unseal", "-c", "policy.ctx", "-p", "pcr:sha256:16", cwd=tmp_path) == (0x99D,)
    tpm.tool("tpm2_flushcontext", "--loaded-session")

    seal(tpm, "counting", "-p", "right", cwd=tmp_path)
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1")
    assert refusal(tpm, "tpm2_unseal", "-c", "counting.ctx", "-p", "wrong", cwd=tmp_path) == (0x98E,)
    assert refusal(tpm, "tpm2_unseal", "-c", "counting.ctx", "-p", "right", cwd=tmp_path) == (0x921,)


def test_lockout_has_power_cuts_among_its_causes() -> None:
    """Part 1 rev 1.59, 19.8.6."""
    lockout = facts(0x921)
    assert (
        "power was lost without a TPM shutdown after such a key was used, and counts as a wrong value each time"
        in lockout["causes"]
    )
    assert lockout["remedy"].startswith("find out who tries, or whether power was lost without a TPM shutdown")


SITUATIONS = {
    "a PCR that only a restart resets": ("tpm2_pcrreset 0", 0x907),
    "PCR values that are not these": ("tpm2_policypcr -S session.ctx -l sha256:16 -f policy", 0x1C4),
    "an NV index twice": ("tpm2_nvdefine 0x1500016 -C o -s 8", 0x14C),
    "an NV index that was never written": ("tpm2_nvread 0x1500016 -C o", 0x14A),
    "an NV index that is not there": ("tpm2_nvread 0x1500099 -C o", 0x18B),
    "a handle that is not there": ("tpm2_readpublic -c 0x81000123", 0x18B),
    "a handle of the platform's": ("tpm2_evictcontrol -C o -c primary.ctx 0x81800001", 0x1CD),
    "a parent that is none": ("tpm2_create -C child.ctx -G ecc -u a -r b", 0x18A),
    "a key of another parent": ("tpm2_load -C other.ctx -u child.pub -r child.priv -c never", 0x1DF),
    "a clear that was disabled": ("tpm2_clear -c l", 0x120),
    "a key size that it does not have": ("tpm2_createprimary -C o -G rsa4096 -c never", 0x2C4),
    "a wrong password of the owner": ("tpm2_createprimary -C o -G ecc -P wrong -c never", 0x9A2),
    "a hierarchy that is switched off": ("tpm2_clearcontrol -C p c", 0x185),
    "a wrong password of the lockout": ("tpm2_dictionarylockout -c -p wrong", 0x98E),
    "after that": ("tpm2_dictionarylockout -c", 0x921),
}

PREPARATION = """\
tpm2_createprimary -C o -G ecc -c primary.ctx
tpm2_create -C primary.ctx -G ecc -u child.pub -r child.priv
tpm2_load -C primary.ctx -u child.pub -r child.priv -c child.ctx
tpm2_createprimary -C e -G ecc -c other.ctx
tpm2_createpolicy --policy-pcr -l sha256:16 -L policy
tpm2_nvdefine 0x1500016 -C o -s 8
tpm2_clearcontrol -C p s
tpm2_hierarchycontrol -C p phEnable clear
tpm2_startauthsession --policy-session -S session.ctx
"""


def test_a_tpm_answers_in_these_situations_what_the_table_says(tpm: SimulatedTpm, tmp_path: Path) -> None:
    for line in PREPARATION.splitlines():
        tpm.tool(*line.split(), cwd=tmp_path)
        tpm.flush()
    for what, (command, code) in SITUATIONS.items():
        assert refusal(tpm, *command.split(), cwd=tmp_path) == (code,), what
    tpm.tool("tpm2_flushcontext", "--loaded-session")
    tpm.tool("tpm2_flushcontext", "--saved-session")
