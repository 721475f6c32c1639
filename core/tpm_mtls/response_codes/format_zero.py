"""The TPM's errors that are about no handle, parameter or session: TPM 2.0 Library part 2 rev 1.59, 6.6.3, table 16.

The codes of format zero with bit 8 set: ``TPM_RC_VER1`` and a number.
"""

from __future__ import annotations

from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    AuthorizationError,
    PolicyRefusedError,
    TpmMemoryError,
    TpmVersionError,
)
from tpm_mtls.response_codes.meaning import CHECK_POLICY, OUTDATED, SHOW_POLICY, Meaning

_OUR_BUG = "see what was sent with tpm-mtls trace, and report it to who wrote the program"
_NEVER = "report it to the TPM's maker: no command answers it in the specification"

SUCCESS = Meaning("TPM_RC_SUCCESS", "no error: the command was carried out", (), "nothing has to be done")

BAD_TAG = Meaning(
    "TPM_RC_BAD_TAG",
    "it is a TPM 1.2, or the command's tag is wrong",
    ("the chip is a TPM 1.2: it answers so to every command of TPM 2.0", "a program sent something that is no command"),
    "a TPM 2.0 is needed; some firmware can switch its TPM between 1.2 and 2.0",
    TpmVersionError,
    "In libtss2's SAPI it becomes 0x80001.",
)

FORMAT_ZERO = {
    0x100: Meaning(
        "TPM_RC_INITIALIZE",
        "the TPM was not started up",
        (
            "neither the firmware nor the kernel's driver sent TPM2_Startup after the last reset",
            "a simulator was started without --flags startup-clear",
            "TPM2_Startup was sent a second time",
        ),
        "the firmware or the kernel's driver does that: tpm2_startup -c, once, where neither did",
        note="It says nothing about a clear or a locked hierarchy. The kernel logs it as A TPM error (256).",
    ),
    0x101: Meaning(
        "TPM_RC_FAILURE",
        "the TPM is in failure mode",
        (
            "a self-test failed: tpm2_gettestresult says which",
            "the chip is broken, too hot or badly supplied",
            "a simulator cannot read or write its state: a relative path, a full disk, two on one folder",
        ),
        "power the machine off and on again; if it stays, replace it",
        note="The kernel logs it as A TPM error (257).",
    ),
    0x103: Meaning(
        "TPM_RC_SEQUENCE",
        "a hash or HMAC sequence was used for what it is not",
        ("an event sequence was ended with SequenceComplete, or a hash sequence with EventSequenceComplete",),
        _OUR_BUG,
    ),
    0x10B: Meaning("TPM_RC_PRIVATE", "a code that the specification does not use", ("a vendor's extension",), _NEVER),
    0x119: Meaning("TPM_RC_HMAC", "a code that the specification does not use", ("a vendor's extension",), _NEVER),
    0x120: Meaning(
        "TPM_RC_DISABLED",
        "that command is disabled",
        (
            "TPM2_Clear was disabled by TPM2_ClearControl: only the platform hierarchy can enable it again",
            "the maker allows the command in the firmware only",
        ),
        "clear or configure the TPM in the machine's firmware",
        note="A hierarchy that is switched off is another code: TPM_RC_HIERARCHY, such as 0x185.",
    ),
    0x121: Meaning(
        "TPM_RC_EXCLUSIVE",
        "an exclusive audit session was interrupted by another command",
        ("another program used the TPM between two commands of the audited sequence",),
        "begin the audit session anew, and let no other program use the TPM meanwhile",
    ),
    0x124: Meaning(
        "TPM_RC_AUTH_TYPE",
        "that kind of session cannot authorize this",
        (
            "the command needs a policy session, and a password was sent: Duplicate always does",
            "ObjectChangeAuth, Certify or ActivateCredential with a key that has adminWithPolicy",
        ),
        "use the kind of session that the command's description in part 3 asks for",
    ),
    0x125: Meaning(
        "TPM_RC_AUTH_MISSING",
        "the command needs an authorization, and none was sent",
        ("the program sent the command without a session for a handle that needs one",),
        _OUR_BUG,
        AuthorizationError,
        "A missing password is not this: an empty one was sent then, and the answer is 0x9a2 or 0x98e.",
    ),
    0x126: Meaning(
        "TPM_RC_POLICY",
        "the key's policy is not satisfied: its signed policy is older than the newest one installed here",
        (
            "PolicyNV: the comparison is false; here it is the counter by which old signed policies are withdrawn",
            "PolicyCounterTimer: the clock or a restart counter is not what the policy asks for",
            "a policy digest of a size that its hash does not have",
        ),
        OUTDATED,
        PolicyRefusedError,
        "Wrong PCR values are another code: 0x99d (TPM_RC_POLICY_FAIL), or 0x1c4 (TPM_RC_VALUE) from PolicyPCR itself.",
    ),
    0x127: Meaning(
        "TPM_RC_PCR",
        "a check of PCRs failed",
        ("a maker's own check: the specification's commands answer wrong PCR values with 0x99d or 0x1c4",),
        "see what they are: tpm-mtls pcr read",
    ),
    0x128: Meaning(
        "TPM_RC_PCR_CHANGED",
        "a PCR changed while the key's policy was being proved",
        (
            "something was measured between PolicyPCR and the use of the key: the boot is not over, or IMA measures",
            "the policy names a PCR that changes while the machine runs, such as 10 with IMA",
        ),
        f"try again when the machine has finished booting; {CHECK_POLICY}",
        PolicyRefusedError,
    ),
    0x12D: Meaning(
        "TPM_RC_UPGRADE",
        "the TPM is in the middle of a firmware update",
        ("an update was interrupted: the TPM accepts nothing but its continuation", "update data without an update"),
        "finish the update with the maker's tool",
    ),
    0x12E: Meaning(
        "TPM_RC_TOO_MANY_CONTEXTS",
        "the TPM has given out all numbers for saved contexts",
        ("very many contexts were saved since the last start",),
        "restart the machine: the counter begins anew with a TPM reset",
        TpmMemoryError,
    ),
    0x12F: Meaning(
        "TPM_RC_AUTH_UNAVAILABLE",
        "it takes no authorization value, only its policy, and none was found",
        (
            "the key has a policy and no userWithAuth, and a program used it with a password",
            "an NV index without AUTHREAD or AUTHWRITE was used with its own authorization value",
        ),
        "its policy is a file NAME.policy.json beside the key or its certificate, and it needs the relay "
        f"(--relay auto); {SHOW_POLICY}",
        PolicyRefusedError,
    ),
    0x130: Meaning(
        "TPM_RC_REBOOT",
        "the TPM works again only after a restart of the machine",
        ("a firmware update or a change of the active PCR banks is not finished until then",),
        "restart the machine; a suspend and resume is not enough",
    ),
    0x131: Meaning(
        "TPM_RC_UNBALANCED",
        "hash and cipher of a key are not of equal strength",
        ("a template with a cipher whose key is longer than the digest of its hash, such as AES-256 with SHA-1",),
        "use a template of the TCG, such as AES-128 with SHA-256",
        AlgorithmUnsupportedError,
    ),
    0x142: Meaning(
        "TPM_RC_COMMAND_SIZE",
        "the command's length is not what it says",
        ("a program or transport cut the command off, or put two into one write", "the command is too long for it"),
        _OUR_BUG,
    ),
    0x143: Meaning(
        "TPM_RC_COMMAND_CODE",
        "this TPM does not have that command",
        ("an optional command, such as CreateLoaded or EncryptDecrypt2", "an old firmware"),
        "update its firmware",
        AlgorithmUnsupportedError,
        "The kernel's /dev/tpmrm0 answers 0xb0143 itself for a command that the TPM does not list.",
    ),
    0x144: Meaning(
        "TPM_RC_AUTHSIZE",
        "the size of the command's authorization area is wrong",
        ("a program built the command by hand and miscounted", "more than three sessions"),
        _OUR_BUG,
    ),
    0x145: Meaning(
        "TPM_RC_AUTH_CONTEXT",
        "a session was sent with a command that takes none",
        ("ContextSave, ContextLoad, FlushContext, Startup and the like were sent with an audit or encryption session",),
        _OUR_BUG,
    ),
    0x146: Meaning(
        "TPM_RC_NV_RANGE",
        "that is beyond the end of the NV index",
        ("offset and size together exceed the index's size",),
        "see its size: tpm2_nvreadpublic",
    ),
    0x147: Meaning(
        "TPM_RC_NV_SIZE",
        "an NV index of that size is not possible",
        ("it is larger than the TPM allows for one index",),
        "make it smaller, or split it; the largest: tpm2_getcap properties-fixed, TPM2_PT_NV_INDEX_MAX",
    ),
    0x148: Meaning(
        "TPM_RC_NV_LOCKED",
        "the NV index is locked",
        (
            "NV_ReadLock or NV_WriteLock was used: until the next start, or for ever with WRITEDEFINE",
            "the global write lock is set",
        ),
        "restart the machine where the lock is one until the next start; see tpm2_nvreadpublic",
    ),
    0x149: Meaning(
        "TPM_RC_NV_AUTHORIZATION",
        "what was given does not authorize the use of that NV index",
        (
            "read or written by the owner where its attributes (OWNERREAD, OWNERWRITE) do not allow that",
            "used by another index's authorization",
        ),
        "see its attributes: tpm2_nvreadpublic; this failure does not count towards the lockout",
        AuthorizationError,
    ),
    0x14A: Meaning(
        "TPM_RC_NV_UNINITIALIZED",
        "that NV index was never written",
        ("it was defined, and nothing was written to it since", "a state saved by Shutdown(STATE) is damaged"),
        "write it first; what is there: tpm2_nvreadpublic",
    ),
    0x14B: Meaning(
        "TPM_RC_NV_SPACE",
        "the TPM's NV memory is full",
        ("NV indices that nobody needs any more", "persistent keys: many chips have room for seven"),
        "see what takes it: tpm-mtls keygen list, tpm2_getcap handles-nv-index; or use key files: --out F",
        TpmMemoryError,
    ),
    0x14C: Meaning(
        "TPM_RC_NV_DEFINED",
        "something is at that NV index or persistent handle already",
        ("it was made before, by this or another program",),
        "see what is there: tpm-mtls keygen list, tpm2_nvreadpublic; take another one",
    ),
    0x150: Meaning(
        "TPM_RC_BAD_CONTEXT",
        "the saved context is not valid",
        ("it was saved before the TPM was restarted", "it is another TPM's, damaged, or loaded a second time"),
        "make it anew: contexts do not outlive a restart",
    ),
    0x151: Meaning(
        "TPM_RC_CPHASH",
        "the policy session is bound to other parameters already",
        ("PolicyCpHash, PolicyNameHash, PolicyTemplate or PolicyDuplicationSelect were used together",),
        "begin a new session, and use only one of them",
        PolicyRefusedError,
    ),
    0x152: Meaning(
        "TPM_RC_PARENT",
        "that key cannot be a parent",
        (
            "it is no storage key: restricted, decrypt and with a cipher",
            "a hierarchy was meant, or the other way round",
        ),
        "use a storage key, such as the SRK: handle 0x81000001",
    ),
    0x153: Meaning(
        "TPM_RC_NEEDS_TEST",
        "the TPM has to test that function first",
        ("it was not tested since the start",),
        "tpm2_selftest --fulltest, then again",
    ),
    0x154: Meaning(
        "TPM_RC_NO_RESULT",
        "the TPM could not compute it, and says no more",
        ("parameters that are valid each but not together, such as an RSA value larger than the modulus",),
        "check the parameters",
        note="It does not mean that the chip is gone from its bus: then there is no answer at all (0xa000a).",
    ),
    0x155: Meaning(
        "TPM_RC_SENSITIVE",
        "the private part cannot be read after its decryption",
        ("a wrong key or seed for an import", "the private part was damaged before it was wrapped"),
        "make or wrap it anew",
    ),
}
