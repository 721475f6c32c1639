"""Response codes in words: every code of the TPM library; those of other layers as `tpm_mtls.response_codes` has them.

TPM 2.0 Library part 2 rev 1.59, 6.6 and table 16.
"""

from __future__ import annotations

from tpm_mtls.response_codes import describe

_FORMAT_ONE = 0x080
_FORMAT_ONE_NUMBER = 0x03F
_TPM_1_2 = 0x100  # clear in format zero: a code of TPM 1.2
_VENDOR = 0x400
_ABOUT_NOTHING = 0xF00

_FORMAT_ZERO_NAMES = {
    0x100: "INITIALIZE", 0x101: "FAILURE", 0x103: "SEQUENCE", 0x10B: "PRIVATE", 0x119: "HMAC", 0x120: "DISABLED",
    0x121: "EXCLUSIVE", 0x124: "AUTH_TYPE", 0x125: "AUTH_MISSING", 0x126: "POLICY", 0x127: "PCR",
    0x128: "PCR_CHANGED", 0x12D: "UPGRADE", 0x12E: "TOO_MANY_CONTEXTS", 0x12F: "AUTH_UNAVAILABLE", 0x130: "REBOOT",
    0x131: "UNBALANCED", 0x142: "COMMAND_SIZE", 0x143: "COMMAND_CODE", 0x144: "AUTHSIZE", 0x145: "AUTH_CONTEXT",
    0x146: "NV_RANGE", 0x147: "NV_SIZE", 0x148: "NV_LOCKED", 0x149: "NV_AUTHORIZATION", 0x14A: "NV_UNINITIALIZED",
    0x14B: "NV_SPACE", 0x14C: "NV_DEFINED", 0x150: "BAD_CONTEXT", 0x151: "CPHASH", 0x152: "PARENT",
    0x153: "NEEDS_TEST", 0x154: "NO_RESULT", 0x155: "SENSITIVE",
    0x901: "CONTEXT_GAP", 0x902: "OBJECT_MEMORY", 0x903: "SESSION_MEMORY", 0x904: "MEMORY", 0x905: "SESSION_HANDLES",
    0x906: "OBJECT_HANDLES", 0x907: "LOCALITY", 0x908: "YIELDED", 0x909: "CANCELED", 0x90A: "TESTING",
    0x910: "REFERENCE_H0", 0x911: "REFERENCE_H1", 0x912: "REFERENCE_H2", 0x913: "REFERENCE_H3",
    0x914: "REFERENCE_H4", 0x915: "REFERENCE_H5", 0x916: "REFERENCE_H6", 0x918: "REFERENCE_S0",
    0x919: "REFERENCE_S1", 0x91A: "REFERENCE_S2", 0x91B: "REFERENCE_S3", 0x91C: "REFERENCE_S4",
    0x91D: "REFERENCE_S5", 0x91E: "REFERENCE_S6", 0x920: "NV_RATE", 0x921: "LOCKOUT", 0x922: "RETRY",
    0x923: "NV_UNAVAILABLE",
}  # fmt: skip

_FORMAT_ONE_NAMES = {
    0x01: "ASYMMETRIC", 0x02: "ATTRIBUTES", 0x03: "HASH", 0x04: "VALUE", 0x05: "HIERARCHY", 0x07: "KEY_SIZE",
    0x08: "MGF", 0x09: "MODE", 0x0A: "TYPE", 0x0B: "HANDLE", 0x0C: "KDF", 0x0D: "RANGE", 0x0E: "AUTH_FAIL",
    0x0F: "NONCE", 0x10: "PP", 0x12: "SCHEME", 0x15: "SIZE", 0x16: "SYMMETRIC", 0x17: "TAG", 0x18: "SELECTOR",
    0x1A: "INSUFFICIENT", 0x1B: "SIGNATURE", 0x1C: "KEY", 0x1D: "POLICY_FAIL", 0x1F: "INTEGRITY", 0x20: "TICKET",
    0x21: "RESERVED_BITS", 0x22: "BAD_AUTH", 0x23: "EXPIRED", 0x24: "POLICY_CC", 0x25: "BINDING", 0x26: "CURVE",
    0x27: "ECC_POINT", 0x28: "FW_LIMITED", 0x29: "SVN_LIMITED",
}  # fmt: skip


def response_words(rc: int) -> str:
    """``success``, or the code's name, what it is about and its number, such as ``TPM_RC_HANDLE, handle 1, 0x18b``."""
    if rc == 0:
        return "success"
    if rc >> 16:
        return describe(rc)
    if rc & _FORMAT_ONE:
        name = _FORMAT_ONE_NAMES.get(rc & _FORMAT_ONE_NUMBER)
    else:
        name = _FORMAT_ZERO_NAMES.get(rc) if rc & _TPM_1_2 and not rc & _VENDOR else None
    if name is None:
        return f"unknown response code, {rc:#05x}"
    about = _about(rc)
    return f"TPM_RC_{name}, {about}, {rc:#05x}" if about else f"TPM_RC_{name}, {rc:#05x}"


def _about(rc: int) -> str:
    """What a format-one code is about: part 2, 6.6.2."""
    if not rc & _FORMAT_ONE or not rc & (_ABOUT_NOTHING | 0x40):
        return ""
    number = rc >> 8 & 0xF
    if rc & 0x40:
        return f"parameter {number}"
    return f"session {number - 8}" if number & 8 else f"handle {number}"
