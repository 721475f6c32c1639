"""What the relay answers by itself: the codes of `tpm_mtls_relay.errors`.

They are of the resource manager's layer, from TSS2_LAYER_IMPLEMENTATION_SPECIFIC_OFFSET on (tss2_common.h). The policy
files that the texts speak of are those of `tpm_mtls.policy`.
"""

from __future__ import annotations

from tpm_mtls.errors import (
    KeyGoneError,
    PolicyError,
    PolicyRefusedError,
    TpmMemoryError,
    TpmUnavailableError,
)
from tpm_mtls.response_codes.meaning import CHECK_POLICY, OUTDATED, SHOW_POLICY, Meaning

_LAYER = 11 << 16 | 0xF840

NO_TPM = _LAYER | 0x102
"""No TPM answers behind the relay, or not in time."""

_RESTORE_POLICY = f"restore the file from a backup, or make a new key; {SHOW_POLICY}"
_SIGN_POLICY = (
    "let the operator sign one for this state of the machine: tpm-mtls policy record --out FILE, tpm-mtls policy sign, "
    "then tpm-mtls policy install FILE"
)

RELAY = {
    _LAYER | 0x101: Meaning(
        "MALFORMED_COMMAND",
        "the program sent something that is no TPM command, or one larger than any TPM takes",
        ("a program for TPM 1.2", "a program that writes something else into the relay"),
        "is the program made for TPM 2.0? see what it sends: tpm-mtls trace",
    ),
    NO_TPM: Meaning(
        "NO_TPM",
        "no TPM answers",
        (
            "/dev/tpm0 is in use by another program, or the user may not open it",
            "the simulator or resource manager does not run",
            "the TPM did not answer in time",
        ),
        "is it there, and does nobody else hold it? tpm-mtls doctor",
        TpmUnavailableError,
    ),
    _LAYER | 0x103: Meaning(
        "MALFORMED_RESPONSE",
        "what answers is no TPM",
        ("the TCTI string names another service", "the connection broke in the middle of an answer"),
        "does the TCTI string name a TPM 2.0, and nothing else?",
        TpmUnavailableError,
    ),
    _LAYER | 0x104: Meaning(
        "KEY_GONE",
        "the key that was loaded is no longer in the TPM: the connection to it broke, or it restarted",
        ("the TPM or its simulator was restarted", "the resource manager was restarted, and flushed the key"),
        "load it again; programs that use the client do so by themselves",
        KeyGoneError,
    ),
    _LAYER | 0x105: Meaning(
        "NOT_SWAPPED",
        "the kernel cannot swap a key or session in or out of the TPM: another program has kept a session idle for too "
        "long, or fills the TPM by way of /dev/tpm0",
        ("a session that is open for weeks: after about 65,000 others its number comes round", "leaked objects"),
        "dmesg says what the TPM refused; end or restart that program",
        TpmMemoryError,
    ),
    _LAYER | 0x110: Meaning(
        "POLICY_MISSING",
        "the key has a policy, and its file is missing",
        ("the key's file was copied or moved without it", "the program runs where it may not read it"),
        f"NAME.policy.json must lie beside the key or its certificate; {SHOW_POLICY}",
        PolicyError,
    ),
    _LAYER | 0x111: Meaning(
        "POLICY_DAMAGED",
        "the file with the key's policy is damaged",
        ("it was edited, or cut off by a full disk",),
        _RESTORE_POLICY,
        PolicyError,
    ),
    _LAYER | 0x112: Meaning(
        "POLICY_NOT_THE_KEYS",
        "the file with the key's policy holds another one than the key was made with",
        ("two keys' files were mixed up", "the key was made anew and the file was not"),
        _RESTORE_POLICY,
        PolicyError,
    ),
    _LAYER | 0x113: Meaning(
        "POLICY_NOT_SATISFIED",
        "the key's policy is not satisfied: this machine is in none of the states that it allows",
        ("firmware, boot loader, kernel or Secure Boot's keys changed", "PCR 23 or another was extended since"),
        CHECK_POLICY,
        PolicyRefusedError,
        "The TPM's own code for it is 0x99d. It is not 0x9a2, which is a wrong password.",
    ),
    _LAYER | 0x114: Meaning(
        "POLICY_BANK_MISSING",
        "the key's policy names a PCR bank that this TPM does not have, or not active",
        ("the firmware was reset, and activates another bank", "another board"),
        "activate it in the firmware (tpm2_pcrallocate), or make a new key with another bank: tpm2_getcap pcrs",
        PolicyRefusedError,
    ),
    _LAYER | 0x115: Meaning(
        "POLICY_SIGNATURE",
        "the signature of a signed policy is wrong, or of another signer than the key's",
        ("it was signed with another key than the one that the device key names", "it was edited after the signature"),
        _SIGN_POLICY,
        PolicyError,
    ),
    _LAYER | 0x116: Meaning(
        "POLICY_OUTDATED",
        "the key's signed policy is older than the newest one that was installed on this machine",
        ("an older image was booted than the newest policy's", "the newest policy was removed: install it again"),
        OUTDATED,
        PolicyRefusedError,
    ),
    _LAYER | 0x117: Meaning(
        "POLICY_UNSIGNED",
        "the key wants a signed policy, and there is none for it",
        ("none was signed for what this machine boots", "it was not installed: tpm-mtls policy install"),
        _SIGN_POLICY,
        PolicyError,
    ),
}
"""By the whole code: layer 11 and a number that no TPM has."""
