"""TPM and TSS response codes as errors.

Layout of a code: TPM 2.0 Library part 2 rev 1.59, 6.6 (format zero and format one), and TSS 2.0 Overview rev 1.0,
table 7 for the layer in bits 16 to 23. Both the ESAPI (`tpm_mtls.tpm`) and OpenSSL's provider (`tpm_mtls.openssl`)
report these numbers, so this table is the one place that says what they mean. What the relay answers by itself is in
`tpm_mtls.relay_codes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    AuthorizationError,
    ForeignKeyError,
    HandleNotFoundError,
    KeyGoneError,
    PolicyRefusedError,
    TctiInvalidError,
    TpmLockoutError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
    TpmUnavailableError,
    TpmVersionError,
)
from tpm_mtls.relay import tpm_behind
from tpm_mtls.relay_codes import CHECK_POLICY, KEY, NO_TPM, relay_code_name, relay_error

_LAYER_SHIFT = 16
_LAYERS = {
    0: "TPM",
    6: "FAPI",
    7: "ESAPI",
    8: "SAPI",
    9: "MU",
    10: "TCTI",
    11: "resource manager",
    12: "resource manager",
}
_TCTI_LAYER = 10

_FORMAT_ONE = 0x080
_PARAMETER = 0x040


@dataclass(frozen=True)
class _Meaning:
    name: str
    error: type[TpmRefusedError]
    text: str
    hint: str


_REFUSED = "look the code up with tpm2_rc_decode, and check the command's arguments"

_FORMAT_ONE_MEANINGS = {
    0x01: _Meaning(
        "TPM_RC_ASYMMETRIC",
        AlgorithmUnsupportedError,
        "this TPM does not have that asymmetric algorithm",
        "use ecc-p256",
    ),
    0x04: _Meaning("TPM_RC_VALUE", AlgorithmUnsupportedError, "this TPM does not support that value", "use ecc-p256"),
    0x07: _Meaning(
        "TPM_RC_KEY_SIZE", AlgorithmUnsupportedError, "this TPM does not support that key size", "use ecc-p256"
    ),
    0x26: _Meaning("TPM_RC_CURVE", AlgorithmUnsupportedError, "this TPM does not have that curve", "use ecc-p256"),
    0x0B: _Meaning(
        "TPM_RC_HANDLE",
        HandleNotFoundError,
        "the TPM has nothing at that handle",
        "list what it has: tpm-mtls keygen list",
    ),
    0x0E: _Meaning(
        "TPM_RC_AUTH_FAIL",
        AuthorizationError,
        "wrong authorization value (this counts towards the TPM's lockout)",
        "give the right one: --auth prompt, file:F or credential:NAME",
    ),
    0x22: _Meaning(
        "TPM_RC_BAD_AUTH",
        AuthorizationError,
        "wrong or missing authorization value",
        "give the right one: --auth prompt, file:F or credential:NAME",
    ),
    0x1D: _Meaning(
        "TPM_RC_POLICY_FAIL",
        PolicyRefusedError,
        "the key's policy is not satisfied: this machine booted something else than what the key is bound to",
        CHECK_POLICY,
    ),
    0x1F: _Meaning(
        "TPM_RC_INTEGRITY",
        ForeignKeyError,
        "the key belongs to another TPM, or this TPM was cleared since it was made",
        "use it on the device that made it, or make a new key: tpm-mtls keygen create",
    ),
}

_FORMAT_ZERO_MEANINGS = {
    0x100: _Meaning(
        "TPM_RC_INITIALIZE",
        TpmRefusedError,
        "the TPM was not started up",
        "the firmware or the kernel's driver does that: tpm2_startup -c, once, where neither did",
    ),
    0x101: _Meaning(
        "TPM_RC_FAILURE",
        TpmRefusedError,
        "the TPM is in failure mode",
        "power the machine off and on again; if it stays, replace it",
    ),
    0x120: _Meaning(
        "TPM_RC_DISABLED", TpmRefusedError, "that command is disabled", "enable the hierarchy in the firmware"
    ),
    0x126: _Meaning(
        "TPM_RC_POLICY",
        PolicyRefusedError,
        "the key's policy is not satisfied: its signed policy is older than the newest one installed here",
        f"install the newest one: tpm-mtls policy install; {CHECK_POLICY}",
    ),
    0x128: _Meaning(
        "TPM_RC_PCR_CHANGED",
        PolicyRefusedError,
        "a PCR changed while the key's policy was being proved",
        f"try again when the machine has finished booting; {CHECK_POLICY}",
    ),
    0x12F: _Meaning(
        "TPM_RC_AUTH_UNAVAILABLE",
        PolicyRefusedError,
        "it takes no authorization value, only its policy, and none was found",
        "its policy is a file NAME.policy.json beside the key or its certificate, and it needs the relay "
        f"(--relay auto); see tpm-mtls policy show {KEY}",
    ),
    0x143: _Meaning(
        "TPM_RC_COMMAND_CODE", AlgorithmUnsupportedError, "this TPM does not have that command", "update its firmware"
    ),
    0x14A: _Meaning(
        "TPM_RC_NV_UNINITIALIZED",
        TpmRefusedError,
        "that NV index was never written",
        "write it first; what is there: tpm2_nvreadpublic",
    ),
    0x14B: _Meaning(
        "TPM_RC_NV_SPACE",
        TpmMemoryError,
        "the TPM's NV memory is full",
        "see what takes it: tpm-mtls keygen list, tpm2_getcap handles-nv-index; or use key files: --out F",
    ),
    0x902: _Meaning(
        "TPM_RC_OBJECT_MEMORY",
        TpmMemoryError,
        "the TPM's object slots are exhausted: another program holds keys in it, or one was killed and left them",
        "use the resource manager (device:/dev/tpmrm0), or free them: tpm2_flushcontext --transient-object",
    ),
    0x901: _Meaning(
        "TPM_RC_CONTEXT_GAP",
        TpmMemoryError,
        "another program has kept a session idle for too long",
        "end or restart the program that holds one behind the same resource manager",
    ),
    0x903: _Meaning(
        "TPM_RC_SESSION_MEMORY",
        TpmMemoryError,
        "the TPM's session slots are exhausted",
        "use the resource manager (device:/dev/tpmrm0), or free them: tpm2_flushcontext --loaded-session",
    ),
    0x904: _Meaning(
        "TPM_RC_MEMORY",
        TpmMemoryError,
        "the TPM is out of memory",
        "free objects: tpm2_flushcontext --transient-object",
    ),
    0x906: _Meaning(
        "TPM_RC_OBJECT_HANDLES",
        TpmMemoryError,
        "the TPM is out of object handles",
        "remove a key: tpm-mtls keygen remove",
    ),
    0x920: _Meaning(
        "TPM_RC_NV_RATE",
        TpmRefusedError,
        "the TPM slows writes to its NV memory down, so that it does not wear out",
        "wait some minutes, and write less often",
    ),
    0x921: _Meaning(
        "TPM_RC_LOCKOUT",
        TpmLockoutError,
        "the TPM is in dictionary-attack lockout after too many wrong authorization values",
        "wait for its recovery time, or as its owner: tpm2_dictionarylockout --clear-lockout",
    ),
}

_GONE = _Meaning(
    "TPM_RC_REFERENCE_H0",
    KeyGoneError,
    "the key that was loaded is no longer in the TPM: it restarted, or somebody flushed it",
    "load it again; programs that use the client do so by themselves",
)

_FORGED_ANSWER = 0x7001B
_FORGED = _Meaning(
    "TSS2_ESYS_RC_RSP_AUTH_FAILED",
    TpmRefusedError,
    "the answer is not the TPM's: something between here and the TPM changed it",
    "look at what sits on its bus; a resource manager or a proxy may be broken, too",
)

_BROKEN_CONNECTION = {0x70007, NO_TPM}
"""TSS2_ESYS_RC_BAD_SEQUENCE, what the ESAPI answers to everything after its transport failed once; and the relay's."""

# TPM_BADTAG, which a TPM 1.2 answers to every 2.0 command (part 2, 6.6.1); and what libtss2's SAPI makes of its tag
_TPM_1_2_ANSWERS = {0x01E, 0x80001}

_STACK = {7, 8, 9}  # ESAPI, SAPI, MU
_NO_TPM_ANSWER = {17, 19}  # TSS2_BASE_RC_MALFORMED_RESPONSE, INSUFFICIENT_RESPONSE: what answered is no TPM
_TCTI_BAD_VALUE = 0xA000B  # TSS2_TCTI_RC_BAD_VALUE: the transport does not understand its configuration
_TCTI_NOT_SUPPORTED = 0xA0015  # TSS2_TCTI_RC_NOT_SUPPORTED: libtss2 has no such transport installed


def tpm_error(rc: int, *, doing: str, tcti: str) -> TpmMtlsError:
    """The error for response code ``rc``, which came back while ``doing`` something at ``tcti``.

    Returns:
        An error of the class that `tpm_mtls.errors` draws: transport failures are `TpmUnavailableError`, an answer of
        a TPM 1.2 `TpmVersionError`, an unusable policy `PolicyError`, everything else a `TpmRefusedError` or one of its
        children. Where the relay is in between it speaks of the TPM behind it.
    """
    error = relay_error(rc, doing=doing, tcti=tpm_behind(tcti)) or _unavailable(rc, tcti)
    if error is not None:
        return error
    meaning = _meaning(rc)
    if meaning is None:
        return TpmRefusedError(f"cannot {doing}: {describe(rc)}", hint=_REFUSED, rc=rc)
    return meaning.error(f"cannot {doing}: {meaning.text} ({describe(rc)})", hint=meaning.hint, rc=rc)


def refusal_class(rc: int) -> type[TpmRefusedError]:
    """The class of error that says what a TPM means by ``rc``, for whoever was told the code by another program."""
    meaning = _meaning(rc)
    return meaning.error if meaning else TpmRefusedError


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
    layer = rc >> _LAYER_SHIFT
    if layer == _TCTI_LAYER or rc in _BROKEN_CONNECTION or (layer in _STACK and rc & 0xFFFF in _NO_TPM_ANSWER):
        return TpmUnavailableError(
            f"no TPM answers at {tcti} (response code {rc:#x})", hint=_why_silent(tcti), tcti=tcti
        )
    return None


def _why_silent(tcti: str) -> str:
    if re.fullmatch(r"(pcap:)?device:/dev/tpm\d+", tcti):
        return f"does another program hold it? several at once may use --tcti {tcti.replace('/dev/tpm', '/dev/tpmrm')}"
    return "is it there, and does nobody else hold it? a simulator starts with: tpm-mtls simulator start --dir D"


def describe(rc: int) -> str:
    """``rc`` in short, such as ``TPM_RC_BAD_AUTH, session 1, 0x9a2``."""
    layer = _LAYERS.get(rc >> _LAYER_SHIFT, f"layer {rc >> _LAYER_SHIFT}")
    meaning = _meaning(rc)
    name = meaning.name if meaning else relay_code_name(rc) or f"{layer} response code"
    return ", ".join(filter(None, [name, _subject(rc), f"{rc:#05x}"]))


def _meaning(rc: int) -> _Meaning | None:
    code = rc & 0xFFFF
    if rc == _FORGED_ANSWER:
        return _FORGED
    if code & _FORMAT_ONE:
        return _FORMAT_ONE_MEANINGS.get(code & 0x3F)
    if 0x910 <= code <= 0x916:  # noqa: PLR2004 - TPM_RC_REFERENCE_H0 to H6, part 2, table 18
        return _GONE
    return _FORMAT_ZERO_MEANINGS.get(code)


def _subject(rc: int) -> str:
    if not rc & _FORMAT_ONE:
        return ""
    number = rc >> 8 & 0xF
    if rc & _PARAMETER:
        return f"parameter {number}"
    return f"session {number - 8}" if number & 8 else f"handle {number}"
