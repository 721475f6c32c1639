"""What the relay answers by itself, as errors: the codes of `tpm_mtls_relay.errors`.

They are of the resource manager's layer, from TSS2_LAYER_IMPLEMENTATION_SPECIFIC_OFFSET on (tss2_common.h). The policy
files that the texts speak of are those of `tpm_mtls.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tpm_mtls.errors import (
    KeyGoneError,
    PolicyError,
    PolicyRefusedError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
    TpmUnavailableError,
)

KEY = "--key KEY"
"""In a hint: to be filled in by who knows the key."""

CHECK_POLICY = f"tpm-mtls policy check {KEY} says what differs from when it was made"

_LAYER = 11 << 16 | 0xF840

NO_TPM = _LAYER | 0x102
"""No TPM answers behind the relay, or not in time: `tpm_mtls.response_codes` knows what to advise."""

_SHOW_POLICY = f"see tpm-mtls policy show {KEY}"
_RESTORE_POLICY = f"restore the file from a backup, or make a new key; {_SHOW_POLICY}"
_SIGN_POLICY = "let the operator sign one for this state of the machine: tpm-mtls policy sign, then policy install"


@dataclass(frozen=True)
class _Meaning:
    name: str
    error: type[
        KeyGoneError | PolicyError | PolicyRefusedError | TpmMemoryError | TpmRefusedError | TpmUnavailableError
    ]
    text: str
    hint: str


_MEANINGS = {
    0x101: _Meaning(
        "MALFORMED_COMMAND",
        TpmRefusedError,
        "the program sent something that is no TPM command, or one larger than any TPM takes",
        "is the program made for TPM 2.0? see what it sends: tpm-mtls trace",
    ),
    0x103: _Meaning(
        "MALFORMED_RESPONSE",
        TpmUnavailableError,
        "what answers is no TPM",
        "does the TCTI string name a TPM 2.0, and nothing else?",
    ),
    0x104: _Meaning(
        "KEY_GONE",
        KeyGoneError,
        "the key that was loaded is no longer in the TPM: the connection to it broke, or it restarted",
        "load it again; programs that use the client do so by themselves",
    ),
    0x105: _Meaning(
        "NOT_SWAPPED",
        TpmMemoryError,
        "the kernel cannot swap a key or session in or out of the TPM: another program has kept a session idle for too "
        "long, or fills the TPM by way of /dev/tpm0",
        "dmesg says what the TPM refused; end or restart that program",
    ),
    0x110: _Meaning(
        "POLICY_MISSING",
        PolicyError,
        "the key has a policy, and its file is missing",
        f"NAME.policy.json must lie beside the key or its certificate; {_SHOW_POLICY}",
    ),
    0x111: _Meaning("POLICY_DAMAGED", PolicyError, "the file with the key's policy is damaged", _RESTORE_POLICY),
    0x112: _Meaning(
        "POLICY_NOT_THE_KEYS",
        PolicyError,
        "the file with the key's policy holds another one than the key was made with",
        _RESTORE_POLICY,
    ),
    0x113: _Meaning(
        "POLICY_NOT_SATISFIED",
        PolicyRefusedError,
        "the key's policy is not satisfied: this machine is in none of the states that it allows",
        CHECK_POLICY,
    ),
    0x114: _Meaning(
        "POLICY_BANK_MISSING",
        PolicyRefusedError,
        "the key's policy names a PCR bank that this TPM does not have, or not active",
        "activate it in the firmware (tpm2_pcrallocate), or make a new key with another bank: tpm2_getcap pcrs",
    ),
    0x115: _Meaning(
        "POLICY_SIGNATURE",
        PolicyError,
        "the signature of a signed policy is wrong, or of another signer than the key's",
        _SIGN_POLICY,
    ),
    0x116: _Meaning(
        "POLICY_OUTDATED",
        PolicyRefusedError,
        "the key's signed policy is older than the newest one that was installed on this machine",
        f"install the newest one: tpm-mtls policy install; {CHECK_POLICY}",
    ),
    0x117: _Meaning(
        "POLICY_UNSIGNED", PolicyError, "the key wants a signed policy, and there is none for it", _SIGN_POLICY
    ),
}


def relay_error(rc: int, *, doing: str, tcti: str) -> TpmMtlsError | None:
    """The error for a code of the relay's that came back while ``doing`` something; none for `NO_TPM` and others'."""
    meaning = _meaning(rc)
    if meaning is None:
        return None
    if issubclass(meaning.error, TpmUnavailableError):
        return meaning.error(f"{meaning.text} at {tcti} (the relay's code {rc:#x})", hint=meaning.hint, tcti=tcti)
    message = f"cannot {doing}: {meaning.text} ({meaning.name}, {rc:#x})"
    if issubclass(meaning.error, PolicyError):
        return meaning.error(message, hint=meaning.hint)
    return meaning.error(message, hint=meaning.hint, rc=rc)


def relay_code_name(rc: int) -> str | None:
    """The name of a response code of the relay's, such as ``POLICY_MISSING``; none for another's."""
    meaning = _meaning(rc)
    return None if meaning is None else meaning.name


def _meaning(rc: int) -> _Meaning | None:
    return _MEANINGS.get(rc & ~_LAYER) if rc & _LAYER == _LAYER else None
