"""The relay's policy layer before a simulated TPM, in this process, with what reaches the TPM written down."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tpm_mtls_relay.connection.opening import open_transport
from tpm_mtls_relay.connection.retrying import Retrying
from tpm_mtls_relay.loaded.objects import Objects
from tpm_mtls_relay.loaded.tracking import Tracking
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import refused, sized
from tpm_mtls_relay.messages.wire import HEADER, code_of
from tpm_mtls_relay.policies.authorization import PolicyAuthorization
from tpm_mtls_relay.policies.session import PASSWORD, command_with_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.relay_policies import PolicyKey
    from support.tpm import SimulatedTpm
    from tpm_mtls_relay.messages.wire import Exchange

NAMES = {code: name for name, code in vars(commands).items() if name.isupper() and isinstance(code, int)}
MESSAGE = b"what TLS signs"

_SRK = 0x81000001
_NO_TICKET = bytes.fromhex("8024400000070000")  # TPM_ST_HASHCHECK, TPM_RH_NULL, no digest
_ECDSA_SHA256 = bytes.fromhex("0018000b")
_RSASSA_SHA256 = bytes.fromhex("0014000b")


class SigningRelay:
    """The layers; ``commands`` are the names of what reached the TPM since it was last cleared.

    ``before`` may answer a command instead of the TPM, or change what it does: it is given the command and the TPM.
    """

    def __init__(self, exchange: Exchange, folders: list[str]) -> None:
        self._exchange = exchange
        self.commands: list[str] = []
        self.before: Callable[[bytes, Exchange], bytes] | None = None
        self.objects = Objects()
        tracking = Tracking(Retrying(self._send, self.objects), self.objects)
        self.layer = PolicyAuthorization(tracking, self.objects, folders)

    def load(self, key: PolicyKey) -> int:
        """Loads ``key``; returns its handle."""
        area = PASSWORD.to_bytes(4, "big") + bytes(5)
        blobs = key.pem.with_suffix(".priv").read_bytes() + key.pem.with_suffix(".pub").read_bytes()
        response = self.layer(command_with_sessions(commands.LOAD, (_SRK,), area, blobs))
        assert code_of(response) == 0
        self.commands.clear()
        return Reader(response, HEADER.size).number(4)

    def sign(self, handle: int, key: PolicyKey, password: bytes = b"") -> bytes:
        """The response to a TPM2_Sign as the provider sends it."""
        scheme = _RSASSA_SHA256 if isinstance(key.public_key, RSAPublicKey) else _ECDSA_SHA256
        parameters = sized(hashlib.sha256(MESSAGE).digest()) + scheme + _NO_TICKET
        area = PASSWORD.to_bytes(4, "big") + sized(b"") + b"\x01" + sized(password)
        return self.layer(command_with_sessions(commands.SIGN, (handle,), area, parameters))

    def signed_with(self, handle: int, key: PolicyKey, password: bytes = b"") -> list[str]:
        """Signs, verifies the signature, and returns the names of the commands that it took."""
        self.commands.clear()
        verify(self.sign(handle, key, password), key)
        return list(self.commands)

    def _send(self, command: bytes) -> bytes:
        self.commands.append(NAMES[code_of(command)])
        return self.before(command, self._exchange) if self.before else self._exchange(command)


@contextmanager
def signing_relay(tpm: SimulatedTpm, *folders: Path) -> Iterator[SigningRelay]:
    """The layers, which flush nothing at the end: the test does."""
    yield SigningRelay(open_transport(tpm.tcti), [str(folder) for folder in folders])
    tpm.flush()


def verify(response: bytes, key: PolicyKey) -> None:
    """The response is what a password session would have got, with a signature over `MESSAGE`."""
    assert code_of(response) == 0
    reader = Reader(response, HEADER.size)
    signature = Reader(reader.sized_long())
    assert reader.rest() == bytes.fromhex("0000010000")
    kind = signature.take(4)
    if isinstance(key.public_key, RSAPublicKey):
        assert kind == _RSASSA_SHA256
        key.public_key.verify(signature.sized(), MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert kind == _ECDSA_SHA256
        r, s = (int.from_bytes(signature.sized(), "big") for _ in range(2))
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        key.public_key.verify(utils.encode_dss_signature(r, s), MESSAGE, ec.ECDSA(hashes.SHA256()))
    signature.end()


def answer(command: int, response_code: int) -> Callable[[bytes, Exchange], bytes]:
    """For `SigningRelay.before`: ``command`` gets ``response_code`` and never reaches the TPM."""

    def before(sent: bytes, exchange: Exchange) -> bytes:
        if code_of(sent) == command:
            return refused(response_code)
        return exchange(sent)

    return before
