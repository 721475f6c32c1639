"""The table of response codes is complete: what libtss2 and tpm2-pytss know, it knows, under the same names."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest
from tpm2_pytss.constants import TPM2_RC, TSS2_RC

from tpm_mtls.explain.libtss2_words import FORMAT_ONE, FORMAT_ZERO, STACK
from tpm_mtls.explain.reading import read_codes
from tpm_mtls.response_codes import all_names, describe, explain, named
from tpm_mtls.response_codes.stack import DEFINED, SPECIAL, SPECIAL_NAMES
from tpm_mtls_relay import errors as relay

PARTS = {"MAX_FM0", "FMT1", "VER1", "WARN", "N_MASK", "P", "H", "S", "A", "B", "C", "D", "E", "F"}
TPM = {
    name: int(getattr(TPM2_RC, name))
    for name in dir(TPM2_RC)
    if name.isupper() and name not in PARTS and not re.fullmatch(r"_.*|RC\d", name)
}
TSS = {
    f"TSS2_{name}": int(getattr(TSS2_RC, name))
    for name in dir(TSS2_RC)
    if re.fullmatch(r"(?!BASE_)[A-Z]+_RC_(?!LAYER)\w+", name)
}
NEWER = {"TPM_RC_FW_LIMITED", "TPM_RC_SVN_LIMITED"}  # libtss2 4.1 is the first that knows them
UNKNOWN_TO_LIBTSS2 = {"TPM_RC_BAD_TAG", "TPM_RC_NOT_USED"}

libtss2_rc = ctypes.CDLL("libtss2-rc.so.0")
libtss2_rc.Tss2_RC_Decode.restype = ctypes.c_char_p


def libtss2_says(code: int) -> str:
    """What tpm2_rc_decode prints, which calls the same function."""
    return str(libtss2_rc.Tss2_RC_Decode(code).decode())


def is_known_to_libtss2(code: int) -> bool:
    said = libtss2_says(code)
    return re.search(r":(0x[0-9A-F]+|\(null\)|unknown [^(]*)$|: unknown|Vendor specific|error\(1\.2\)", said) is None


def test_every_code_of_the_tpm_library_is_in_the_table() -> None:
    assert len(TPM) > 95
    for name, code in TPM.items():
        assert explain(code).name == f"TPM_RC_{name}"
        assert explain(code).is_named
        assert named(f"TPM2_RC_{name}") == named(f"TPM_RC_{name}") == named(name.lower()) == (code,)


def test_libtss2s_words_lead_back_to_its_code() -> None:
    layers = [number << 16 | base for number in (6, 7, 8, 9, 10) for base in STACK]
    codes = [*(0x1C0 | number for number in FORMAT_ONE), *FORMAT_ZERO, *layers]
    codes += [about | number for number in FORMAT_ONE for about in (0x180, 0x980, 0xF80, 0x7C0)]
    for code in codes:
        assert read_codes(f"a program failed: {libtss2_says(code)}") == (code,)


def test_every_code_of_the_software_stack_is_in_the_table() -> None:
    assert len(TSS) > 100
    for name, code in TSS.items():
        assert explain(code).name == name
        assert named(name) == (code,)
    whole = {number << 16 | base for number, bases in DEFINED.items() for base in bases}
    later = {0x70015, 0x70036, *range(0x60034, 0x60037)}  # named by libtss2 4.x
    assert whole - set(TSS.values()) <= later
    assert SPECIAL_NAMES.keys() <= whole | later
    assert SPECIAL.keys() <= whole
    assert all(
        meaning.name == name for code, meaning in SPECIAL.items() for name, value in TSS.items() if value == code
    )


def test_every_code_of_the_relay_is_in_the_table() -> None:
    codes = {name: code for name, code in vars(relay).items() if isinstance(code, int) and name != "LAYER"}
    for name, code in codes.items():
        assert explain(code).name == name
        assert explain(code).layer.short == "relay"


@pytest.mark.parametrize("layer", [0, 0xB0000])
def test_libtss2_knows_the_same_codes_of_a_tpm(layer: int) -> None:
    """All 4,096 of them: by which are known, and by what each is about."""
    for code in range(1, 0x1000):
        found = explain(layer | code)
        if layer and found.name.startswith("TSS2_RESMGR_RC_"):
            continue
        if code & 0x280 == 0x200:  # a reserved bit of format zero, which libtss2 does not look at
            assert found.meaning is None
        elif found.name not in NEWER | UNKNOWN_TO_LIBTSS2:
            assert found.is_named == is_known_to_libtss2(code), hex(code)
        about = re.search(r"(handle|parameter|session)\((\w+)\)", libtss2_says(code))
        number = found.about.partition(" ")[2]
        if about and number.isdigit() and int(number) < 8:  # libtss2 3.2 reads three bits of a parameter's four
            assert found.about == f"{about[1]} {about[2]}"
        elif about and not number.isdigit():
            assert about[2] == "unk"
            assert found.about in ("", f"a {about[1]}")


def test_libtss2_knows_the_same_codes_of_the_stack() -> None:
    for number in (6, 7, 8, 9, 10):
        for base in DEFINED[number] - {54}:
            assert is_known_to_libtss2(number << 16 | base)
        assert explain(number << 16 | 0x37).meaning is None
        assert not is_known_to_libtss2(number << 16 | 0x37)


@pytest.mark.parametrize(
    ("code", "said"),
    [(0x9A2, "authorization failure without DA"), (0x98E, "DA counter incremented"), (0x99D, "policy check failed")],
)
def test_tpm2_rc_decode_agrees_about_the_codes_that_are_mixed_up(code: int, said: str) -> None:
    decoded = subprocess.run(["tpm2_rc_decode", hex(code)], check=True, capture_output=True, text=True).stdout
    assert said in decoded
    assert "session(1)" in decoded
    meaning = explain(code).meaning
    assert meaning is not None
    assert ("policy" in meaning.text) == (code == 0x99D)


def test_every_row_is_complete_and_in_the_projects_words() -> None:
    for name in all_names():
        for code in named(name):
            meaning = explain(code).meaning
            assert meaning is not None
            assert meaning.causes or code == 0
            for text in (meaning.text, meaning.hint, *meaning.causes):
                assert text
                assert not text.endswith(".")
                assert "|" not in text
                assert not re.match(r"[A-Z][a-z]+ ", text), text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0x0A2, "TPM_RC_BAD_AUTH, 0x0a2"),
        (0x8A2, "TPM_RC_BAD_AUTH, a session, 0x8a2"),
        (0x0DF, "TPM_RC_INTEGRITY, a parameter, 0x0df"),
        (0xFDF, "TPM_RC_INTEGRITY, parameter 15, 0xfdf"),
        (0xB0143, "TPM_RC_COMMAND_CODE, 0xb0143"),
        (0xC0902, "TPM_RC_OBJECT_MEMORY, 0xc0902"),
        (0xB000C, "TSS2_RESMGR_RC_NOT_PERMITTED, 0xb000c"),
        (0xB0005, "TSS2_RESMGR_RC_BAD_REFERENCE, 0xb0005"),
        (0xBF97F, "unknown resource manager response code, 0xbf97f"),
        (0x60036, "TSS2_FAPI_RC_NULL_CALLBACK, 0x60036"),
        (0xD0034, "TSS2_POLICY_RC_POLICY_NOT_CALCULATED, 0xd0034"),
        (0x1000B, "unknown layer 1 response code, 0x1000b"),
        (0x1001, "unknown TPM response code, 0x1001"),
    ],
)
def test_a_code_is_described_by_what_answered_it(code: int, text: str) -> None:
    assert describe(code) == text


def test_names_are_found_with_and_without_their_beginning() -> None:
    assert named("TSS2_ESAPI_RC_BAD_TR") == named("tss2_esys_rc_bad_tr") == named("BAD_TR") == (0x70018,)
    assert named("MEMORY") == (0x904,)  # the TPM's before libtss2's
    assert named("RSP_AUTH_FAILED") == (0x7001B,)
    assert named("MALFORMED_RESPONSE") == (0xBF943,)
    assert named("NO_CONFIG") == (0x6001C,)
    assert named("IO_ERROR") == (0x6000A, 0x7000A, 0xA000A, 0xD000A)
    assert named("AUTH") == ()
    assert named("") == ()
