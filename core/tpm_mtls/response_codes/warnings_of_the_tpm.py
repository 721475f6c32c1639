"""The TPM's warnings, most of which pass: TPM 2.0 Library part 2 rev 1.59, 6.6.3, table 16 (``TPM_RC_WARN``).

What a power cut has to do with TPM_RC_LOCKOUT: part 1 rev 1.59, 19.8.6.
"""

from __future__ import annotations

from tpm_mtls.errors import KeyGoneError, TpmLockoutError, TpmMemoryError
from tpm_mtls.response_codes.meaning import Meaning
from tpm_mtls.tpm_attributes import WHY_IT_COUNTS

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")

_RESTARTED = "the TPM restarted: reset, power cut, or a simulator that was started anew"

_WARNINGS = {
    0x901: Meaning(
        "TPM_RC_CONTEXT_GAP",
        "another program has kept a session idle for too long",
        ("a session was saved long ago, and so many were used since that their numbers would overlap",),
        "end or restart the program that holds one behind the same resource manager",
        TpmMemoryError,
    ),
    0x902: Meaning(
        "TPM_RC_OBJECT_MEMORY",
        "the TPM's object slots are exhausted: another program holds keys in it, or one was killed and left them",
        (
            "/dev/tpm0 or a simulator without resource manager: most TPMs have three slots",
            "a program was killed and could not flush: tpm2_getcap handles-transient lists what it left",
        ),
        "use the resource manager (device:/dev/tpmrm0), or free them: tpm2_flushcontext --transient-object",
        TpmMemoryError,
        "It is not the NV memory: that is 0x14b. The kernel logs it as A TPM error (2306).",
    ),
    0x903: Meaning(
        "TPM_RC_SESSION_MEMORY",
        "the TPM's session slots are exhausted",
        ("programs without resource manager that do not flush their sessions", "three sessions are in use at once"),
        "use the resource manager (device:/dev/tpmrm0), or free them: tpm2_flushcontext --loaded-session",
        TpmMemoryError,
    ),
    0x904: Meaning(
        "TPM_RC_MEMORY",
        "the TPM is out of memory",
        ("objects and sessions share its memory, and too many are loaded",),
        "free objects: tpm2_flushcontext --transient-object",
        TpmMemoryError,
    ),
    0x905: Meaning(
        "TPM_RC_SESSION_HANDLES",
        "the TPM is out of session handles",
        ("64 sessions or so are active, the saved ones among them: some program leaks them",),
        "free them: tpm2_flushcontext --saved-session, or restart the program that leaks them",
        TpmMemoryError,
    ),
    0x906: Meaning(
        "TPM_RC_OBJECT_HANDLES",
        "the TPM is out of object handles",
        ("too many keys are loaded or persistent",),
        "remove a key: tpm-mtls keygen remove",
        TpmMemoryError,
    ),
    0x907: Meaning(
        "TPM_RC_LOCALITY",
        "that is not allowed from this locality",
        (
            "PCRs 0 to 15 are reset by a restart only, and not by PCR_Reset",
            "PCRs 17 to 22 belong to a dynamic launch (DRTM): Linux speaks from locality 0",
            "a policy with PolicyLocality is used from another one",
        ),
        "use a PCR that this locality may change: 16 and 23 may be reset from Linux",
    ),
    0x908: Meaning(
        "TPM_RC_YIELDED",
        "the TPM put the command off for something more urgent",
        ("an interrupt or a background task of the TPM",),
        "send it again",
    ),
    0x909: Meaning(
        "TPM_RC_CANCELED",
        "the command was cancelled",
        ("the program or the driver cancelled it, usually after a time-out",),
        "send it again; RSA keys take seconds on some chips",
    ),
    0x90A: Meaning(
        "TPM_RC_TESTING",
        "the TPM is testing itself",
        ("the self-test after the start is not over",),
        "wait a second, then again; tpm2_gettestresult",
    ),
    0x920: Meaning(
        "TPM_RC_NV_RATE",
        "the TPM slows writes to its NV memory down, so that it does not wear out",
        ("a program writes NV often: a counter, a persistent key made and removed again and again",),
        "wait some minutes, and write less often",
    ),
    0x921: Meaning(
        "TPM_RC_LOCKOUT",
        "the TPM is in dictionary-attack lockout after too many wrong authorization values",
        (
            "wrong values for keys without noDA, 0x98e each time; a service that tries again and again is enough",
            "power was lost without a TPM shutdown after such a key was used, and counts as a wrong value each time",
            "for the lockout hierarchy itself one wrong value is enough, and then only LOCKOUT_RECOVERY seconds help",
        ),
        f"{WHY_IT_COUNTS}; wait for its recovery time, or as its owner: tpm2_dictionarylockout --clear-lockout",
        TpmLockoutError,
        "A reboot does not end it, and heat does not cause it. Keys with noDA work on. See the counter: "
        "tpm2_getcap properties-variable.",
    ),
    0x922: Meaning(
        "TPM_RC_RETRY",
        "the TPM was not able to start the command now",
        ("it is busy, for example with saving its state",),
        "send it again; libtss2 and the kernel do that by themselves, a few times",
    ),
    0x923: Meaning(
        "TPM_RC_NV_UNAVAILABLE",
        "the TPM's NV memory cannot be written now",
        ("it is switched off or busy for the moment", "a simulator's disk is full or read-only"),
        "wait and try again; with a simulator look at its folder",
    ),
}

_GONE_KEY = {
    0x910 + index: Meaning(
        f"TPM_RC_REFERENCE_H{index}",
        "the key that was loaded is no longer in the TPM: it restarted, or somebody flushed it",
        (_RESTARTED, "another program flushed it", f"the command's {ordinal} handle names a saved or unknown object"),
        "load it again; programs that use the client do so by themselves",
        KeyGoneError,
    )
    for index, ordinal in enumerate(_ORDINALS)
}

_GONE_SESSION = {
    0x918 + index: Meaning(
        f"TPM_RC_REFERENCE_S{index}",
        "a session is no longer in the TPM: it restarted, or somebody flushed it",
        (_RESTARTED, "the session was flushed or saved", f"it is the command's {ordinal} session"),
        "begin a new session: run the command again",
    )
    for index, ordinal in enumerate(_ORDINALS)
}

_RESERVED = {
    0x97F: Meaning(
        "TPM_RC_NOT_USED",
        "a code that no TPM answers",
        ("a damaged answer, or a broken firmware",),
        "update the TPM's firmware, and look at what sits between the program and the TPM",
    )
}

WARNINGS = _WARNINGS | _GONE_KEY | _GONE_SESSION | _RESERVED
