"""What resource managers answer by themselves: the codes of tpm2-abrmd (src/tabrmd.h, 3.0).

Both the kernel's and tpm2-abrmd also answer TPM codes in their own layer, such as 0xb0143 or 0xb0902: these mean what
they mean from a TPM.
"""

from __future__ import annotations

from tpm_mtls.errors import TpmMemoryError
from tpm_mtls.response_codes.meaning import Meaning

_JOURNAL = "journalctl -u tpm2-abrmd says more; or use the kernel's: --tcti device:/dev/tpmrm0"

RESOURCE_MANAGER = {
    0xB0001: Meaning(
        "TSS2_RESMGR_RC_GENERAL_FAILURE",
        "the resource manager has no connection left, or failed",
        ("too many programs use it at once: 27 by default (--max-connections)", "its TPM does not answer"),
        _JOURNAL,
    ),
    0xB0002: Meaning(
        "TSS2_RESMGR_RC_NOT_IMPLEMENTED",
        "the resource manager cannot do that",
        ("cancelling a command, or another locality",),
        "use the TPM without it for that",
    ),
    0xB000B: Meaning(
        "TSS2_RESMGR_RC_BAD_VALUE", "the resource manager was given a wrong value", ("a program's fault",), _JOURNAL
    ),
    0xB000C: Meaning(
        "TSS2_RESMGR_RC_NOT_PERMITTED",
        "the resource manager does not permit that",
        ("the object or session is another program's", "an unknown connection"),
        "use what the same program has loaded; contexts do not pass from one to another",
    ),
    0xB0800: Meaning(
        "TSS2_RESMGR_RC_INTERNAL_ERROR",
        "the resource manager failed",
        ("an error inside tpm2-abrmd", "the TPM behind it does not answer"),
        _JOURNAL,
    ),
    0xB1000: Meaning(
        "TSS2_RESMGR_RC_SAPI_INIT",
        "the resource manager cannot reach the TPM",
        ("/dev/tpm0 is in use by another program, or not there",),
        _JOURNAL,
    ),
    0xB1800: Meaning(
        "TSS2_RESMGR_RC_OUT_OF_MEMORY",
        "the resource manager has no memory left",
        ("a limit of its service",),
        _JOURNAL,
        TpmMemoryError,
    ),
}
