"""The TPM's errors about one handle, parameter or session: TPM 2.0 Library part 2 rev 1.59, 6.6.3, table 16.

The codes of format one (bit 7 set, ``TPM_RC_FMT1``), by their lowest six bits; what they are about is in bits 6 and 8
to 11. 0x28 and 0x29 came with rev 1.83.
"""

from __future__ import annotations

from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    AuthorizationError,
    ForeignKeyError,
    HandleNotFoundError,
    PolicyRefusedError,
)
from tpm_mtls.response_codes.meaning import CHECK_POLICY, GIVE_AUTH, Meaning

_OUR_BUG = "see what was sent with tpm-mtls trace, and report it to who wrote the program"
_WHAT_IT_HAS = "see what this TPM has: tpm-mtls tpm info; ecc-p256 with SHA-256 is in every one"
_DAMAGED = "copy the file again from where it was made, or make a new key"
_NOT_WHAT_IT_SEEMS = (
    "0x9a2 is often called a policy failure. It is none and says nothing about PCRs: the policy failure is 0x99d "
    "(TPM_RC_POLICY_FAIL)."
)

FORMAT_ONE = {
    0x01: Meaning(
        "TPM_RC_ASYMMETRIC",
        "this TPM does not have that asymmetric algorithm",
        ("RSA-3072, RSA-4096, P-521 or another optional one", "a key of the wrong type for the command"),
        "use ecc-p256",
        AlgorithmUnsupportedError,
    ),
    0x02: Meaning(
        "TPM_RC_ATTRIBUTES",
        "the attributes do not fit each other, the key or the command",
        (
            "a restricted key was to sign what the TPM did not hash itself, or a signing key to decrypt",
            "fixedTPM without fixedParent, or a child with other attributes than its parent allows",
            "an NV index was used against its attributes, or a session with audit or encryption where none may be",
        ),
        "compare the attributes with what the command asks for: tpm2_readpublic, tpm2_nvreadpublic",
    ),
    0x03: Meaning(
        "TPM_RC_HASH",
        "this TPM does not have that hash algorithm, or it does not fit here",
        ("SHA-384, SHA-512 or SHA-3 on a chip without it", "another hash than the key's scheme or the PCR bank has"),
        "use sha256",
    ),
    0x04: Meaning(
        "TPM_RC_VALUE",
        "this TPM does not support that value, or it is wrong here",
        (
            "a template with a value that this TPM does not have, such as an RSA key of 4096 bits (0x2c4)",
            "a handle of a kind that the command does not take, or a number out of its range",
            "PolicyPCR (0x1c4): the PCRs do not have the values that it was given",
        ),
        "for a new key use ecc-p256; where it is about PCRs see tpm-mtls pcr diff",
        AlgorithmUnsupportedError,
    ),
    0x05: Meaning(
        "TPM_RC_HIERARCHY",
        "that hierarchy is switched off, or is the wrong one for this",
        (
            "the owner, endorsement or platform hierarchy was disabled until the next start (TPM2_HierarchyControl)",
            "the platform hierarchy: the firmware disables it before the system starts",
            "a ticket or key of another hierarchy",
        ),
        "tpm2_getcap properties-variable shows which are enabled; they are again after a restart",
    ),
    0x07: Meaning(
        "TPM_RC_KEY_SIZE",
        "this TPM does not support that key size",
        ("RSA-3072 on a chip that has RSA-2048 only (some answer TPM_RC_VALUE)", "AES-256 where there is AES-128 only"),
        "use ecc-p256",
        AlgorithmUnsupportedError,
    ),
    0x08: Meaning(
        "TPM_RC_MGF", "this TPM does not have that mask generation function", ("a maker's own limit",), _WHAT_IT_HAS
    ),
    0x09: Meaning(
        "TPM_RC_MODE",
        "this TPM does not have that mode of a cipher, or it does not fit the key",
        ("a storage key's cipher in another mode than CFB", "EncryptDecrypt with a mode that the key does not allow"),
        "use CFB for storage keys and sessions",
    ),
    0x0A: Meaning(
        "TPM_RC_TYPE",
        "something is of the wrong type for this",
        ("the parent is no storage key", "a sealed object was to sign, or a key to be unsealed", "RSA for ECC"),
        "see what it is: tpm2_readpublic -c HANDLE",
    ),
    0x0B: Meaning(
        "TPM_RC_HANDLE",
        "the TPM has nothing at that handle",
        (
            "the key was never made persistent there, or was removed, or the TPM was cleared",
            "a key file's parent, the SRK, is not there: the file is another TPM's, or the TPM was cleared",
            "the NV index is not defined",
            "a transient key is gone: the TPM restarted, or /dev/tpmrm0 flushed it when its program ended",
        ),
        "list what it has: tpm-mtls keygen list",
        HandleNotFoundError,
    ),
    0x0C: Meaning(
        "TPM_RC_KDF",
        "this TPM does not have that key derivation function, or it does not fit here",
        ("a template with a KDF where there must be none",),
        _WHAT_IT_HAS,
    ),
    0x0D: Meaning(
        "TPM_RC_RANGE",
        "a value is out of its range",
        ("a persistent handle outside the owner's 0x81000000 to 0x817fffff", "an NV index outside its hierarchy's"),
        "take a handle from the owner's range, such as 0x81000100",
    ),
    0x0E: Meaning(
        "TPM_RC_AUTH_FAIL",
        "wrong authorization value (this counts towards the TPM's lockout)",
        (
            "a wrong password for a key, sealed object or NV index without noDA",
            "a wrong password for the lockout hierarchy itself: that locks it at once, for a day as a rule",
            "a password with a newline at its end, from a file",
        ),
        GIVE_AUTH,
        AuthorizationError,
        "Every one counts: after some the TPM answers 0x921 (TPM_RC_LOCKOUT). The same without counting is 0x9a2.",
    ),
    0x0F: Meaning(
        "TPM_RC_NONCE",
        "a session's nonce is wrong",
        ("PolicySigned or PolicySecret was given another session's nonce", "a session's state was used twice"),
        "begin a new session",
    ),
    0x10: Meaning(
        "TPM_RC_PP",
        "somebody has to be present at the machine for this",
        ("the command asks for physical presence, which only the firmware can assert",),
        "do it in the firmware's menu",
    ),
    0x12: Meaning(
        "TPM_RC_SCHEME",
        "that signing or encryption scheme is not supported, or not the key's",
        (
            "a key with a fixed scheme was used with another one, such as ECDSA with SHA-256 for SHA-384",
            "a restricted key in a template without scheme",
        ),
        "use the key's own scheme: tpm2_readpublic; for TLS a key without a fixed one: tpm-mtls keygen create",
    ),
    0x15: Meaning(
        "TPM_RC_SIZE",
        "a structure has the wrong size",
        (
            "too much at once: a secret over 128 bytes to seal, an NV piece over the TPM's buffer",
            "an authorization value or policy digest longer than the hash of the object",
            "a damaged key file",
        ),
        "make it smaller; a key file: copy it again from where it was made",
    ),
    0x16: Meaning(
        "TPM_RC_SYMMETRIC",
        "this TPM does not have that cipher or key size, or it does not fit here",
        (
            "AES-256 on a TPM that has AES-128 only",
            "a signing key's template with a cipher (0x2d6): it must have none",
            "a storage key's without one",
        ),
        "for keys that sign set the cipher to null; for storage keys take aes128cfb",
    ),
    0x17: Meaning(
        "TPM_RC_TAG",
        "a structure has the wrong tag",
        ("a ticket of another kind", "an attestation or a structure that was damaged"),
        _OUR_BUG,
    ),
    0x18: Meaning(
        "TPM_RC_SELECTOR",
        "a structure says that it is of a kind that it cannot be",
        ("a structure was built wrongly or damaged",),
        _OUR_BUG,
    ),
    0x1A: Meaning(
        "TPM_RC_INSUFFICIENT",
        "a structure ends too early",
        ("a damaged or truncated key file", "a program built a command wrongly"),
        _DAMAGED,
    ),
    0x1B: Meaning(
        "TPM_RC_SIGNATURE",
        "the signature is not valid",
        (
            "a signed policy for another state, or by another signer (PolicySigned, PolicyAuthorize)",
            "another key, hash or scheme than it was made with",
        ),
        "sign it again with the right key; see tpm-mtls policy show",
    ),
    0x1C: Meaning(
        "TPM_RC_KEY",
        "that key cannot be used for this",
        ("a key that does not sign was to sign or attest", "a symmetric key where an asymmetric one is needed"),
        "use a key of the kind that the command asks for: tpm2_readpublic",
    ),
    0x1D: Meaning(
        "TPM_RC_POLICY_FAIL",
        "the key's policy is not satisfied: this machine booted something else than what the key is bound to",
        (
            "PCRs differ since an update of firmware, boot loader, kernel or Secure Boot's keys",
            "a step of the policy is missing or in another order than when the key was made",
            "another PCR bank than the key's, such as SHA-1",
        ),
        CHECK_POLICY,
        PolicyRefusedError,
        "This is the policy failure. It is not 0x9a2, which is a wrong password, and it does not count towards the "
        "lockout.",
    ),
    0x1F: Meaning(
        "TPM_RC_INTEGRITY",
        "the key belongs to another TPM, or this TPM was cleared since it was made",
        (
            "a key file was copied from another device, or the board was swapped",
            "TPM2_Clear made a new storage root key: everything under the old one is lost",
            "the file names another parent than it was made under, or is damaged",
        ),
        "use it on the device that made it, or make a new key: tpm-mtls keygen create",
        ForeignKeyError,
    ),
    0x20: Meaning(
        "TPM_RC_TICKET",
        "the ticket is not valid",
        ("it is from before a restart or clear", "it is for another digest, key or hierarchy"),
        "get a new one: hash or verify again",
    ),
    0x21: Meaning(
        "TPM_RC_RESERVED_BITS",
        "bits are set that must be zero",
        ("attributes of a newer revision on an older TPM", "a damaged structure"),
        "leave these attributes out, or update the TPM's firmware",
    ),
    0x22: Meaning(
        "TPM_RC_BAD_AUTH",
        "wrong or missing authorization value",
        (
            "a wrong password for a key with noDA, or none where one is needed",
            "the owner or endorsement hierarchy has a password: commands that create or persist keys need it",
            "a password with a newline at its end, from a file",
        ),
        GIVE_AUTH,
        AuthorizationError,
        _NOT_WHAT_IT_SEEMS + " It does not count towards the lockout; 0x98e does.",
    ),
    0x23: Meaning(
        "TPM_RC_EXPIRED",
        "the policy has expired",
        ("PolicySigned, PolicySecret or PolicyTicket with an expiration that is over",),
        "get a new signature, or prove the policy anew",
        PolicyRefusedError,
    ),
    0x24: Meaning(
        "TPM_RC_POLICY_CC",
        "the key's policy allows another command than this one",
        ("PolicyCommandCode names another command", "PolicyDuplicationSelect: only Duplicate"),
        "use the key for what its policy allows; see tpm-mtls policy show",
        PolicyRefusedError,
    ),
    0x25: Meaning(
        "TPM_RC_BINDING",
        "public and private part do not belong together",
        ("two key files were mixed up", "the public part was changed"),
        _DAMAGED,
    ),
    0x26: Meaning(
        "TPM_RC_CURVE",
        "this TPM does not have that curve",
        ("P-384 or P-521 on a chip that has P-256 only",),
        "use ecc-p256",
        AlgorithmUnsupportedError,
    ),
    0x27: Meaning(
        "TPM_RC_ECC_POINT",
        "that point is not on the curve",
        ("a damaged public key, or one of another curve",),
        _DAMAGED,
    ),
    0x28: Meaning(
        "TPM_RC_FW_LIMITED",
        "that key is bound to another firmware of the TPM",
        ("a firmware-limited key after a firmware update", "this TPM has no firmware-limited keys"),
        "make the key anew under this firmware",
    ),
    0x29: Meaning(
        "TPM_RC_SVN_LIMITED",
        "that key is bound to a newer firmware of the TPM",
        ("an SVN-limited key after a downgrade", "this TPM has no SVN-limited keys"),
        "install the newer firmware again, or make the key anew",
    ),
}
