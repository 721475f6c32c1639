"""Response codes of the TPM and of the TSS layers become the error that says what happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls import errors
from tpm_mtls.relay import relay_tcti
from tpm_mtls.response_codes import describe, explain, naming_key, refusal_class, tpm_error
from tpm_mtls_relay import errors as relay


@pytest.mark.parametrize(
    ("rc", "error", "text"),
    [
        (0x01E, errors.TpmVersionError, r"is a TPM 1\.2"),
        (0xA000A, errors.TpmUnavailableError, r"no TPM answers at swtpm:port=1 \(response code 0xa000a\)"),
        (0x902, errors.TpmMemoryError, "object slots are exhausted"),
        (0x903, errors.TpmMemoryError, "session slots are exhausted"),
        (0x14B, errors.TpmMemoryError, "NV memory is full"),
        (0x921, errors.TpmLockoutError, "dictionary-attack lockout"),
        (0x98E, errors.AuthorizationError, "counts towards the TPM's lockout"),
        (
            0x9A2,
            errors.AuthorizationError,
            r"wrong or missing authorization value \(TPM_RC_BAD_AUTH, session 1, 0x9a2\)",
        ),
        (
            0x99D,
            errors.PolicyRefusedError,
            r"booted something else than what the key is bound to \(TPM_RC_POLICY_FAIL, session 1, 0x99d\)",
        ),
        (0x126, errors.PolicyRefusedError, "its signed policy is older than the newest one installed here"),
        (0x128, errors.PolicyRefusedError, "a PCR changed"),
        (0x12F, errors.PolicyRefusedError, "only its policy, and none was found"),
        (relay.MALFORMED_COMMAND, errors.TpmRefusedError, "no TPM command"),
        (relay.NO_TPM, errors.TpmUnavailableError, r"no TPM answers at swtpm:port=1 \(response code 0xbf942\)"),
        (relay.MALFORMED_RESPONSE, errors.TpmUnavailableError, "what answers is no TPM at swtpm:port=1"),
        (relay.NOT_SWAPPED, errors.TpmMemoryError, r"cannot swap a key.*\(NOT_SWAPPED, 0xbf945\)"),
        (relay.KEY_GONE, errors.KeyGoneError, r"no longer in the TPM.*\(KEY_GONE, 0xbf944\)"),
        (relay.POLICY_MISSING, errors.PolicyError, r"its file is missing \(POLICY_MISSING, 0xbf950\)"),
        (relay.POLICY_DAMAGED, errors.PolicyError, "is damaged"),
        (relay.POLICY_NOT_THE_KEYS, errors.PolicyError, "another one than the key was made with"),
        (relay.POLICY_NOT_SATISFIED, errors.PolicyRefusedError, "in none of the states that it allows"),
        (relay.POLICY_BANK_MISSING, errors.PolicyRefusedError, "a PCR bank that this TPM does not have"),
        (relay.POLICY_SIGNATURE, errors.PolicyError, "the signature of a signed policy is wrong"),
        (relay.POLICY_OUTDATED, errors.PolicyRefusedError, "older than the newest one that was installed"),
        (relay.POLICY_UNSIGNED, errors.PolicyError, "wants a signed policy, and there is none"),
        (0x1DF, errors.ForeignKeyError, r"another TPM.*\(TPM_RC_INTEGRITY, parameter 1, 0x1df\)"),
        (0x910, errors.KeyGoneError, "no longer in the TPM"),
        (0x18B, errors.HandleNotFoundError, r"nothing at that handle \(TPM_RC_HANDLE, handle 1, 0x18b\)"),
        (0x1CB, errors.HandleNotFoundError, "nothing at that handle"),
        (0x2E6, errors.AlgorithmUnsupportedError, "does not have that curve"),
        (0x101, errors.TpmRefusedError, "failure mode"),
        (0x14C, errors.TpmRefusedError, r"something is at that NV index .*already \(TPM_RC_NV_DEFINED, 0x14c\)"),
        (0x7000D, errors.TpmRefusedError, r"does not take these sessions.*\(TSS2_ESYS_RC_INVALID_SESSIONS, 0x7000d\)"),
        (
            0xA000B,
            errors.TctiInvalidError,
            r"'swtpm:port=1' has a configuration that its transport does not understand",
        ),
        (0x60031, errors.TpmUnavailableError, r"no TPM answers at swtpm:port=1 \(response code 0x60031\)"),
        (0x1BF, errors.TpmRefusedError, r"cannot do it: unknown TPM response code, handle 1, 0x1bf"),
    ],
)
def test_a_code_becomes_its_error(rc: int, error: type[errors.TpmMtlsError], text: str) -> None:
    made = tpm_error(rc, doing="do it", tcti="swtpm:port=1")
    assert type(made) is error
    with pytest.raises(error, match=text):
        raise made
    assert made.hint


def test_a_code_that_no_class_stands_for_leads_to_its_explanation() -> None:
    for rc in (0x14C, 0x7000D, 0x1BF):
        assert tpm_error(rc, doing="do it", tcti="swtpm:port=1").hint.endswith(f": tpm-mtls explain {rc:#x}")
    assert "explain" not in tpm_error(0x9A2, doing="do it", tcti="swtpm:port=1").hint


def test_a_code_that_another_program_told_has_the_same_class() -> None:
    assert refusal_class(0x9A2) is errors.AuthorizationError
    assert refusal_class(0x99D) is errors.PolicyRefusedError
    assert refusal_class(0x1BF) is errors.TpmRefusedError
    assert refusal_class(0xBF950) is errors.TpmRefusedError  # a `PolicyError` has no response code to be told by


@pytest.mark.parametrize("prefix", ["", "pcap:"])
def test_a_silent_device_that_admits_one_program_only_names_the_one_for_several(prefix: str) -> None:
    hint = tpm_error(0xA000A, doing="do it", tcti=f"{prefix}device:/dev/tpm0").hint
    assert f"another program hold it? several at once may use --tcti {prefix}device:/dev/tpmrm0" in hint
    assert "tpm0" not in tpm_error(0xA000A, doing="do it", tcti=f"{prefix}device:/dev/tpmrm0").hint


def test_the_code_stays_readable_for_programs() -> None:
    error = tpm_error(0x9A2, doing="sign", tcti="swtpm:port=1")
    assert isinstance(error, errors.AuthorizationError)
    assert error.rc == 0x9A2


@given(st.integers(0, 0xFFFFFFFF))
def test_every_code_has_an_error_and_a_description(rc: int) -> None:
    error = tpm_error(rc, doing="do it", tcti="swtpm:port=1")
    assert str(error)
    assert error.hint
    assert f"{rc:x}" in describe(rc)


def test_every_code_of_the_relay_is_in_words() -> None:
    codes = {name: code for name, code in vars(relay).items() if isinstance(code, int) and name != "LAYER"}
    for name, code in codes.items():
        error = tpm_error(code, doing="do it", tcti="swtpm:port=1")
        assert name in str(error) or f"{code:#x}" in str(error)
        assert "resource manager" not in str(error)
    assert tpm_error(relay.LAYER | 0x13F, doing="do it", tcti="swtpm:port=1").args == (
        "cannot do it: unknown resource manager response code, 0xbf97f",
    )


def test_through_the_relay_the_error_names_the_tpm_behind_it() -> None:
    through = relay_tcti("device:/dev/tpm0")
    error = tpm_error(0xA000A, doing="do it", tcti=through)
    assert isinstance(error, errors.TpmUnavailableError)
    assert error.tcti == "device:/dev/tpm0"
    assert str(error) == "no TPM answers at device:/dev/tpm0 (response code 0xa000a)"
    assert "--tcti device:/dev/tpmrm0" in error.hint
    assert "libtss2-tcti-cmd" in tpm_error(0xA0015, doing="do it", tcti=through).hint


def test_what_a_tpm_2_0_may_answer_one_day_is_not_taken_for_a_tpm_1_2s() -> None:
    """Bit 8 of a code of format zero: part 2, 6.6.1."""
    assert explain(0x17F).meaning is None
    meaning = explain(0x07F).meaning
    assert meaning is not None
    assert meaning.name == "TPM 1.2 response code"


OUTDATED = (
    "boot the image of the newest policy, or have this one signed with a higher version: tpm-mtls policy sign, then "
    "tpm-mtls policy install FILE; tpm-mtls policy check says what differs from when it was made"
)


@pytest.mark.parametrize("rc", [0x126, 0xBF956])
def test_an_outdated_policy_leads_to_the_newer_image_or_a_new_signature(rc: int) -> None:
    """To install the newest one helps nobody who has booted an older image: it is installed already."""
    error = tpm_error(rc, doing="sign", tcti="device:/dev/tpmrm0")
    assert isinstance(error, errors.PolicyRefusedError)
    assert error.hint == OUTDATED


def test_hints_about_policies_can_name_a_key() -> None:
    assert naming_key(OUTDATED, "my key.pem").endswith(
        "; tpm-mtls policy check --key 'my key.pem' says what differs from when it was made"
    )
    missing = tpm_error(0xBF950, doing="sign", tcti="device:/dev/tpmrm0").hint
    assert missing.endswith("; see tpm-mtls policy show")
    assert naming_key(missing, "handle:0x81000100").endswith("; see tpm-mtls policy show handle:0x81000100")
