"""Response codes as errors."""

from __future__ import annotations

import re

from tpm_mtls.device_nodes import SILENT_CHIP, managed_node
from tpm_mtls.errors import (
    PolicyError,
    TctiInvalidError,
    TpmMtlsError,
    TpmRefusedError,
    TpmUnavailableError,
    TpmVersionError,
)
from tpm_mtls.relay import tpm_behind
from tpm_mtls.response_codes.lookup import describe, explain
from tpm_mtls.response_codes.meaning import GIVE_AUTH, give_auth
from tpm_mtls.response_codes.relay import NO_TPM, RELAY

_LAYER_SHIFT = 16
_TCTI_LAYER = 10
_TCTI_BAD_VALUE = 0xA000B
_TCTI_NOT_SUPPORTED = 0xA0015

_BROKEN_CONNECTION = {0x70007, NO_TPM}
"""TSS2_ESYS_RC_BAD_SEQUENCE, what the ESAPI answers to everything after its transport failed once; and the relay's."""

# TPM_BADTAG, which a TPM 1.2 answers to every 2.0 command (part 2, 6.6.1); and what libtss2's SAPI makes of its tag
_TPM_1_2_ANSWERS = {0x01E, 0x80001}


def tpm_error(rc: int, *, doing: str, tcti: str, option: str = "--auth") -> TpmMtlsError:
    """The error for response code ``rc``, which came back while ``doing`` something at ``tcti``.

    Args:
        rc: what the TPM, libtss2 or the relay answered.
        doing: what was tried, after "cannot".
        tcti: where the TPM is.
        option: how a user gives the authorization value that was needed, for the hint.

    Returns:
        An error of the class that `tpm_mtls.errors` draws: transport failures are `TpmUnavailableError`, an answer of
        a TPM 1.2 `TpmVersionError`, an unusable policy `PolicyError`, everything else a `TpmRefusedError` or one of its
        children. Where the relay is in between it speaks of the TPM behind it. Its hint names ``tpm-mtls explain``
        where there is more to say than a line holds.
    """
    error = _unavailable(rc, tcti)
    if error is not None:
        return error
    meaning = explain(rc).meaning
    if meaning is None:
        return TpmRefusedError(
            f"cannot {doing}: {describe(rc)}",
            hint=f"check the command's arguments; which layer answered: tpm-mtls explain {rc:#x}",
            rc=rc,
        )
    if issubclass(meaning.error, TpmUnavailableError):
        behind = tpm_behind(tcti)
        source = "the relay's code" if rc in RELAY else "response code"
        return meaning.error(f"{meaning.text} at {behind} ({source} {rc:#x})", hint=meaning.hint, tcti=behind)
    message = f"cannot {doing}: {meaning.text} ({describe(rc)})"
    if issubclass(meaning.error, PolicyError):
        return meaning.error(message, hint=meaning.hint)
    hint = give_auth(option) if meaning.hint == GIVE_AUTH else meaning.hint
    more = f"; more: tpm-mtls explain {rc:#x}" if meaning.error is TpmRefusedError else ""
    return meaning.error(message, hint=f"{hint}{more}", rc=rc)


def refusal_class(rc: int) -> type[TpmRefusedError]:
    """The class of error that says what a TPM means by ``rc``, for whoever was told the code by another program."""
    meaning = explain(rc).meaning
    return meaning.error if meaning and issubclass(meaning.error, TpmRefusedError) else TpmRefusedError


def _unavailable(rc: int, through: str) -> TpmUnavailableError | None:
    """The error for a code that says that no usable TPM answers ``through`` a TCTI; none for another code."""
    tcti = tpm_behind(through)
    if rc in _TPM_1_2_ANSWERS:
        return TpmVersionError(
            f"the TPM at {tcti} is a TPM 1.2", hint="a TPM 2.0 is needed; some firmware can switch", tcti=tcti
        )
    if rc == _TCTI_BAD_VALUE:
        return TctiInvalidError(
            f"the TCTI string {tcti!r} has a configuration that its transport does not understand",
            hint="examples: device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321",
            tcti=tcti,
        )
    if rc == _TCTI_NOT_SUPPORTED:
        library = f"libtss2-tcti-{through.removeprefix('pcap:').partition(':')[0]}"
        return TpmUnavailableError(
            f"libtss2 cannot use the transport of {tcti}: it is not installed, or its service does not run",
            hint=f"install the package of {library}, or name another --tcti",
            tcti=tcti,
        )
    if rc >> _LAYER_SHIFT == _TCTI_LAYER or rc in _BROKEN_CONNECTION:
        return TpmUnavailableError(
            f"no TPM answers at {tcti} (response code {rc:#x})", hint=_why_silent(tcti), tcti=tcti
        )
    return None


def _why_silent(tcti: str) -> str:
    if re.fullmatch(r"(pcap:)?device:/dev/tpm\d+", tcti):
        transport, _, node = tcti.rpartition(":")
        return f"does another program hold it? several at once may use --tcti {transport}:{managed_node(node)}"
    if re.match(r"(pcap:)?device:", tcti):
        return SILENT_CHIP
    if re.match(r"(pcap:)?tabrmd", tcti):
        return "does it run: systemctl status tpm2-abrmd; or use the kernel's resource manager: device:/dev/tpmrm0"
    return "is it there, and does nobody else hold it? a simulator starts with: tpm-mtls simulator start --dir D"
