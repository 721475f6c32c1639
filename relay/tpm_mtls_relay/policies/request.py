"""What a program wants signed."""

from __future__ import annotations

from tpm_mtls_relay.messages.responses import password_of
from tpm_mtls_relay.messages.wire import handles_of, parameters_of


class SignRequest:
    """What the program wants signed.

    Attributes:
        key: handle of the key.
        password: what it gave as authorization value, without the zeros at its end.
        parameters: digest, scheme and ticket.
    """

    __slots__ = ("key", "parameters", "password")

    def __init__(self, key: int, password: bytes, parameters: bytes) -> None:
        self.key = key
        self.password = password.rstrip(b"\0")  # the TPM removes them, too: part 1, 19.6.4.3
        self.parameters = parameters


def sign_request(command: bytes) -> SignRequest | None:
    """The request that a TPM2_Sign with a single password session is; none if it is authorized otherwise."""
    password = password_of(command)
    if password is None:
        return None
    return SignRequest(handles_of(command)[0], password, parameters_of(command))
