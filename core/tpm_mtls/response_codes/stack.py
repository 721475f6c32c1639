"""The codes of the TPM software stack: TSS 2.0 Overview and Common Structures Specification 1.0, 5.3; tss2_common.h.

A number of 1 to 54 says what (`BASE`), bits 16 to 23 which layer says so. Where a layer means something more special by
a number than the others, `SPECIAL` has it by the whole code.
"""

from __future__ import annotations

from tpm_mtls.errors import TpmUnavailableError
from tpm_mtls.response_codes.meaning import Meaning

_REPORT = "report it to who wrote the program: a user cannot cause it; see what it sends with tpm-mtls trace"
_MEMORY = "see what takes the machine's memory"
_NO_TPM = "see what answers: tpm-mtls doctor, tpm-mtls tpm info"
_FAPI_CONFIGURATION = "see its configuration, /etc/tpm2-tss/fapi-config.json, and its profile"
_FAPI_LIST = "see what is there: tss2_list"

_CALLER = ("the program that calls the library has a fault",)

BASE = {
    1: Meaning("GENERAL_FAILURE", "a failure without a code of its own", ("see the lines logged before it",), _NO_TPM),
    2: Meaning("NOT_IMPLEMENTED", "this library cannot do that", ("an old version of libtss2",), "update libtss2"),
    3: Meaning("BAD_CONTEXT", "a context is damaged or not initialized", _CALLER, _REPORT),
    4: Meaning(
        "ABI_MISMATCH",
        "program and library are of different versions",
        ("libraries of libtss2 from different versions are mixed",),
        "install all of libtss2 from one source",
    ),
    5: Meaning("BAD_REFERENCE", "a pointer is missing", _CALLER, _REPORT),
    6: Meaning("INSUFFICIENT_BUFFER", "a buffer is too small", _CALLER, _REPORT),
    7: Meaning("BAD_SEQUENCE", "functions were called in the wrong order", _CALLER, _REPORT),
    8: Meaning(
        "NO_CONNECTION",
        "there is no connection to the layer below",
        ("the TPM, its resource manager or its simulator does not run",),
        _NO_TPM,
        TpmUnavailableError,
    ),
    9: Meaning("TRY_AGAIN", "it is not finished", ("a time-out", "the program polls"), "call it again"),
    10: Meaning(
        "IO_ERROR",
        "reading or writing failed",
        ("the connection to the TPM broke", "a file or folder cannot be read or written"),
        _NO_TPM,
    ),
    11: Meaning("BAD_VALUE", "a parameter has a wrong value", ("an argument or a configuration is wrong",), _REPORT),
    12: Meaning(
        "NOT_PERMITTED",
        "that is not permitted",
        ("the user lacks the rights",),
        "add the user to the group tss, or run it as root",
    ),
    13: Meaning("INVALID_SESSIONS", "the command does not take these sessions, or not that many", _CALLER, _REPORT),
    14: Meaning("NO_DECRYPT_PARAM", "the command has no parameter that can be encrypted", _CALLER, _REPORT),
    15: Meaning("NO_ENCRYPT_PARAM", "the answer has no parameter that can be encrypted", _CALLER, _REPORT),
    16: Meaning("BAD_SIZE", "a size is wrong", ("data is longer than its structure allows",), "make it smaller"),
    17: Meaning(
        "MALFORMED_RESPONSE",
        "what answers is no TPM",
        ("the TCTI string names another service", "a proxy or resource manager between here and the TPM is broken"),
        "does the TCTI string name a TPM 2.0, and nothing else?",
        TpmUnavailableError,
    ),
    18: Meaning("INSUFFICIENT_CONTEXT", "a context is too small", _CALLER, _REPORT),
    19: Meaning(
        "INSUFFICIENT_RESPONSE",
        "the answer is shorter than a TPM's",
        ("the connection broke in the middle", "what answers is no TPM"),
        "does the TCTI string name a TPM 2.0, and nothing else?",
        TpmUnavailableError,
    ),
    20: Meaning(
        "INCOMPATIBLE_TCTI",
        "the transport is of another version than the library",
        ("libraries of libtss2 from different versions are mixed",),
        "install all of libtss2 from one source",
    ),
    21: Meaning("NOT_SUPPORTED", "that is not supported", ("libtss2 was built without it",), "update libtss2"),
    22: Meaning("BAD_TCTI_STRUCTURE", "the transport's context is damaged", _CALLER, _REPORT),
    23: Meaning("MEMORY", "the machine has no memory left", ("a limit of the service or container",), _MEMORY),
    24: Meaning("BAD_TR", "that object does not exist in this library context", _CALLER, _REPORT),
    25: Meaning("MULTIPLE_DECRYPT_SESSIONS", "more than one session is to decrypt a parameter", _CALLER, _REPORT),
    26: Meaning("MULTIPLE_ENCRYPT_SESSIONS", "more than one session is to encrypt the answer", _CALLER, _REPORT),
    27: Meaning(
        "RSP_AUTH_FAILED",
        "the answer is not the TPM's: something between here and the TPM changed it",
        ("a broken resource manager or proxy", "a wrong password in the program's session", "an attack on the bus"),
        "look at what sits on its bus; a resource manager or a proxy may be broken, too",
    ),
    28: Meaning("NO_CONFIG", "there is no FAPI configuration", ("fapi-config.json is missing",), _FAPI_CONFIGURATION),
    29: Meaning("BAD_PATH", "that is no path of FAPI's", ("/HS/SRK and the like is misspelt",), _FAPI_LIST),
    30: Meaning("NOT_DELETABLE", "that object cannot be deleted", ("it is a hierarchy or profile",), _FAPI_LIST),
    31: Meaning("PATH_ALREADY_EXISTS", "something has that path already", ("it was made before",), _FAPI_LIST),
    32: Meaning("KEY_NOT_FOUND", "FAPI's key store does not have that key", ("a wrong path",), _FAPI_LIST),
    33: Meaning(
        "SIGNATURE_VERIFICATION_FAILED",
        "the signature is not valid",
        ("another key, or other data",),
        "check which key signed which data",
    ),
    34: Meaning("HASH_MISMATCH", "the digests differ", ("the data was changed",), "use the data that was hashed"),
    35: Meaning(
        "KEY_NOT_DUPLICABLE",
        "that key cannot be exported",
        ("it has fixedTPM or no policy for Duplicate",),
        "make it exportable when it is created",
    ),
    36: Meaning("PATH_NOT_FOUND", "nothing has that path", ("a wrong path",), _FAPI_LIST),
    37: Meaning("NO_CERT", "there is no certificate", ("the chip came without one for its EK",), _FAPI_CONFIGURATION),
    38: Meaning("NO_PCR", "there is no such PCR", ("the bank is not active",), "tpm-mtls pcr read"),
    39: Meaning("PCR_NOT_RESETTABLE", "that PCR cannot be reset", ("only 16 and 23 can",), "use PCR 16 or 23"),
    40: Meaning("BAD_TEMPLATE", "the template or profile is wrong", ("a damaged file",), _FAPI_CONFIGURATION),
    41: Meaning("AUTHORIZATION_FAILED", "wrong authorization value", ("a wrong password",), "give the right one"),
    42: Meaning(
        "AUTHORIZATION_UNKNOWN",
        "an authorization value is needed, and none can be asked for",
        ("the program registered no callback for passwords",),
        "use a program that asks, or a key without a password",
    ),
    43: Meaning("NV_NOT_READABLE", "that NV index cannot be read", ("its attributes",), "tpm2_nvreadpublic"),
    44: Meaning("NV_TOO_SMALL", "that NV index is too small", ("more data than its size",), "tpm2_nvreadpublic"),
    45: Meaning("NV_NOT_WRITEABLE", "that NV index cannot be written", ("its attributes",), "tpm2_nvreadpublic"),
    46: Meaning("POLICY_UNKNOWN", "there is no such policy", ("it was not imported",), "tss2_import it first"),
    47: Meaning("NV_WRONG_TYPE", "that NV index is of another type", ("its attributes",), "tpm2_nvreadpublic"),
    48: Meaning("NAME_ALREADY_EXISTS", "that name exists already", ("it was made before",), _FAPI_LIST),
    49: Meaning("NO_TPM", "no TPM answers", ("it is not there, or in use",), _NO_TPM, TpmUnavailableError),
    50: Meaning("BAD_KEY", "that key is not usable for this", ("another type or attribute",), _FAPI_LIST),
    51: Meaning("NO_HANDLE", "FAPI has no handle for that object", ("it is not persistent",), _FAPI_LIST),
    52: Meaning("NOT_PROVISIONED", "FAPI was not provisioned", ("its first step is missing",), "tss2_provision"),
    53: Meaning("ALREADY_PROVISIONED", "FAPI was provisioned before", ("the step was repeated",), _FAPI_LIST),
    54: Meaning("CALLBACK_NULL", "a callback is missing", _CALLER, _REPORT),
}

DEFINED = {
    6: {1, 2, 3, 5, 7, 9, 10, 11, 14, 15, 23, *range(28, 55)},
    7: {1, 2, 4, 5, 6, 7, 9, 10, 11, *range(13, 28), 54},
    8: {1, 4, 5, 6, 7, 11, *range(13, 21), 22},
    9: {1, 5, 6, 11, 16},
    10: {*range(1, 13), 17, 21, 23},
    13: {1, 5, 10, 11, 16, 23, 40, 42, 52, 54},
}
"""Which numbers tss2_common.h of libtss2 4.2 gives names in which layer (FAPI, ESAPI, SAPI, MU, TCTI, policy)."""

SPECIAL_NAMES = {
    0x60036: "TSS2_FAPI_RC_NULL_CALLBACK",
    0xD0010: "TSS2_POLICY_RC_BUFFER_TOO_SMALL",
    0xD0034: "TSS2_POLICY_RC_POLICY_NOT_CALCULATED",
    0xD0036: "TSS2_POLICY_RC_NULL_CALLBACK",
}
"""Where tss2_common.h of libtss2 4.x spells a code otherwise than by layer and base."""

SPECIAL = {
    0x70007: Meaning(
        "TSS2_ESYS_RC_BAD_SEQUENCE",
        "the connection to the TPM broke before, and libtss2 answers so to everything since",
        ("an error of the transport or resource manager some commands ago: look further up in the log",),
        "restart the program; programs that use the client connect again by themselves",
        TpmUnavailableError,
    ),
    0x7000B: Meaning(
        "TSS2_ESYS_RC_BAD_VALUE",
        "an argument of a command is wrong",
        ("a session or handle of the wrong kind", "a value too long for its field"),
        "check the command's arguments",
    ),
    0x70018: Meaning(
        "TSS2_ESYS_RC_BAD_TR",
        "the key that was loaded is gone: libtss2 has dropped it",
        ("the TPM restarted, and loading the same handle again found nothing there", "it was flushed and used again"),
        "load it again; programs that use the client do so by themselves",
    ),
    0x7001B: Meaning(
        "TSS2_ESYS_RC_RSP_AUTH_FAILED",
        "the answer is not the TPM's: something between here and the TPM changed it",
        ("a broken resource manager or proxy", "two programs mix their answers on one connection", "an attack"),
        "look at what sits on its bus; a resource manager or a proxy may be broken, too",
    ),
    0x80001: Meaning(
        "TSS2_SYS_RC_GENERAL_FAILURE",
        "the TPM at the other end is a TPM 1.2",
        ("a TPM 1.2 answers 0x1e (TPM_RC_BAD_TAG), and libtss2 makes this of it",),
        "a TPM 2.0 is needed; some firmware can switch its TPM between 1.2 and 2.0",
        TpmUnavailableError,
    ),
    0x9000B: Meaning(
        "TSS2_MU_RC_BAD_VALUE",
        "a structure holds a value that it cannot have",
        ("a damaged file: key, public area, context", "an algorithm that this libtss2 does not know"),
        "copy the file again from where it was made",
    ),
    0x90006: Meaning(
        "TSS2_MU_RC_INSUFFICIENT_BUFFER",
        "a structure ends too early",
        ("a truncated or damaged file: key, public area, context",),
        "copy the file again from where it was made",
    ),
    0xA0001: Meaning(
        "TSS2_TCTI_RC_GENERAL_FAILURE",
        "the transport failed",
        ("the relay or another program of a cmd: TCTI did not start or ended", "tpm2-abrmd closed the connection"),
        _NO_TPM,
        TpmUnavailableError,
    ),
    0xA0008: Meaning(
        "TSS2_TCTI_RC_NO_CONNECTION",
        "no connection to the TPM",
        ("tpm2-abrmd has no connection left for one more program, or does not run", "the D-Bus does not answer"),
        "systemctl status tpm2-abrmd; or use the kernel's: --tcti device:/dev/tpmrm0",
        TpmUnavailableError,
    ),
    0xA0009: Meaning(
        "TSS2_TCTI_RC_TRY_AGAIN",
        "the TPM did not answer in time",
        ("a long command, such as an RSA key's creation", "the TPM or the simulator hangs"),
        "run it again; tpm-mtls doctor, if it stays",
        TpmUnavailableError,
    ),
    0xA000A: Meaning(
        "TSS2_TCTI_RC_IO_ERROR",
        "no TPM answers there",
        (
            "no /dev/tpm0: no TPM, switched off in the firmware, or no driver",
            "/dev/tpm0 is in use by another program: only one may have it at a time",
            "the user may not open /dev/tpmrm0: it is for root and the group tss",
            "the simulator does not run, or serves another program: it has one connection only",
        ),
        "tpm-mtls doctor says which; several programs at once may use --tcti device:/dev/tpmrm0",
        TpmUnavailableError,
    ),
    0xA000B: Meaning(
        "TSS2_TCTI_RC_BAD_VALUE",
        "the TCTI string has a configuration that its transport does not understand",
        ("a misspelt option after the first colon",),
        "examples: device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321",
        TpmUnavailableError,
    ),
    0xA0015: Meaning(
        "TSS2_TCTI_RC_NOT_SUPPORTED",
        "libtss2 cannot use that transport: it is not installed, or its service does not run",
        ("the library libtss2-tcti-NAME is missing", "tabrmd without tpm2-abrmd"),
        "install the package of libtss2-tcti-NAME, or name another --tcti",
        TpmUnavailableError,
    ),
}
