"""Response codes in words: every code of the TPM library."""

from __future__ import annotations

import subprocess

import pytest
from tpm2_pytss.constants import TPM2_RC

from tpm_mtls.trace.responses import response_words

MODIFIERS = {"MAX_FM0", "FMT1", "VER1", "WARN", "NOT_USED", "N_MASK", "SUCCESS", "BAD_TAG"}
NAMES = {
    name: int(getattr(TPM2_RC, name))
    for name in dir(TPM2_RC)
    if name.isupper() and len(name) > 1 and name not in MODIFIERS and not name.startswith(("_", "RC"))
}


def test_every_code_of_libtss2_has_its_name() -> None:
    assert len(NAMES) > 90
    for name, code in NAMES.items():
        assert response_words(code) == f"TPM_RC_{name}, {code:#05x}"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "success"),
        (0x18B, "TPM_RC_HANDLE, handle 1, 0x18b"),
        (0x1DF, "TPM_RC_INTEGRITY, parameter 1, 0x1df"),
        (0x99D, "TPM_RC_POLICY_FAIL, session 1, 0x99d"),
        (0x922, "TPM_RC_RETRY, 0x922"),
        (0x126, "TPM_RC_POLICY, 0x126"),
        (0x1BF, "unknown TPM response code, handle 1, 0x1bf"),
        (0x17F, "unknown TPM response code, 0x17f"),
        (0x501, "vendor's response code, 0x501"),
        (0x01E, "TPM_RC_BAD_TAG, 0x01e"),
        (0x01A, "TPM 1.2 response code, 0x01a"),
    ],
)
def test_what_a_code_is_about_is_told(code: int, words: str) -> None:
    assert response_words(code) == words


@pytest.mark.parametrize("code", [0x18B, 0x1DF, 0x99D, 0x2D5])
def test_tpm2_tools_say_the_same(code: int) -> None:
    said = subprocess.run(["tpm2_rc_decode", hex(code)], check=True, capture_output=True, text=True).stdout
    _, about, _ = response_words(code).split(", ")
    assert f"{about.replace(' ', '(')})" in said


def test_codes_of_other_layers_are_told_by_their_layer() -> None:
    assert "TCTI" in response_words(0xA0011)
