"""What the relay answers by itself, as TPM response codes of the resource manager's layer.

A response code's bits 16 to 23 name the layer of the software stack that it comes from; 0 is the TPM, 11 a resource
manager (TSS 2.0 Overview and Common Structures Specification 1.0, 5.3), and codes from 0xF800 are the implementation's
own. After a code of any other layer than these libtss2's ESAPI takes its connection for broken, and answers everything
that follows with TSS2_ESYS_RC_BAD_SEQUENCE (iesys_tpm_error in esys_iutil.c, 3.2 to 4.1): a policy that is not
satisfied once would lock a web server out until it is restarted. `tpm_mtls.response_codes` puts the codes into words.
"""

from __future__ import annotations

LAYER = 11 << 16 | 0xF840
"""TSS2_RESMGR_RC_LAYER, TSS2_LAYER_IMPLEMENTATION_SPECIFIC_OFFSET, and numbers that no TPM has, so that libtss2 puts
them into no other's words: 0xBF941 is MALFORMED_COMMAND, and so on."""

MALFORMED_COMMAND = LAYER | 0x101
NO_TPM = LAYER | 0x102
MALFORMED_RESPONSE = LAYER | 0x103
KEY_GONE = LAYER | 0x104
NOT_SWAPPED = LAYER | 0x105
POLICY_MISSING = LAYER | 0x110
POLICY_DAMAGED = LAYER | 0x111
POLICY_NOT_THE_KEYS = LAYER | 0x112
POLICY_NOT_SATISFIED = LAYER | 0x113
POLICY_BANK_MISSING = LAYER | 0x114
POLICY_SIGNATURE = LAYER | 0x115
POLICY_OUTDATED = LAYER | 0x116
POLICY_UNSIGNED = LAYER | 0x117


class RelayError(Exception):
    """Parent of all: the program gets ``code`` as the response code of its command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class MalformedCommandError(RelayError):
    """The program wrote something that is no TPM command."""

    def __init__(self, message: str) -> None:
        super().__init__(message, MALFORMED_COMMAND)


class UnreadableError(RelayError):
    """Bytes are not the structure that they should be."""

    def __init__(self, message: str, code: int = MALFORMED_COMMAND) -> None:
        super().__init__(message, code)


class TransportError(RelayError):
    """No TPM answers, it answers garbage, or not in time."""

    def __init__(self, message: str, code: int = NO_TPM) -> None:
        super().__init__(message, code)


class ConnectionLostError(TransportError):
    """A connection to the TPM ended by itself.

    Attributes:
        sent: whether the command, or a part of it, may have reached the TPM.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class NotSwappedError(ConnectionLostError):
    """The kernel's resource manager could not save or load what a program has in the TPM, and has lost track of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=True)
        self.code = NOT_SWAPPED


class KeyGoneError(RelayError):
    """A key or session that the command uses is not in the TPM any more."""

    def __init__(self, message: str) -> None:
        super().__init__(message, KEY_GONE)


class OptionError(RelayError):
    """The relay was started with an option that it does not understand."""

    def __init__(self, message: str) -> None:
        super().__init__(message, NO_TPM)
