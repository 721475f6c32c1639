"""Response codes in words, for a trace."""

from __future__ import annotations

from tpm_mtls.response_codes import describe


def response_words(rc: int) -> str:
    """``success``, or the code's name, what it is about and its number, such as ``TPM_RC_HANDLE, handle 1, 0x18b``."""
    return "success" if rc == 0 else describe(rc)
