"""Response codes of the TPM and of the TSS layers become the error that says what happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls import errors
from tpm_mtls.response_codes import describe, tpm_error


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
        (0x99D, errors.AuthorizationError, "policy is not satisfied"),
        (0x1DF, errors.ForeignKeyError, r"another TPM.*\(TPM_RC_INTEGRITY, parameter 1, 0x1df\)"),
        (0x910, errors.KeyGoneError, "no longer in the TPM"),
        (0x18B, errors.HandleNotFoundError, r"nothing at that handle \(TPM_RC_HANDLE, handle 1, 0x18b\)"),
        (0x1CB, errors.HandleNotFoundError, "nothing at that handle"),
        (0x2E6, errors.AlgorithmUnsupportedError, "does not have that curve"),
        (0x101, errors.TpmRefusedError, "failure mode"),
        (0x14C, errors.TpmRefusedError, r"cannot do it: TPM response code, 0x14c"),
        (0x7000D, errors.TpmRefusedError, r"cannot do it: ESAPI response code, 0x7000d"),
    ],
)
def test_a_code_becomes_its_error(rc: int, error: type[errors.TpmMtlsError], text: str) -> None:
    made = tpm_error(rc, doing="do it", tcti="swtpm:port=1")
    assert type(made) is error
    with pytest.raises(error, match=text):
        raise made
    assert made.hint


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
