"""Applying for a device's first certificate: with a bootstrap token, with the TPM's evidence, or with both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.certificates import parse_csr, spki
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.est_client import Shown
from tpm_mtls_keygen.patience import Later

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from cryptography import x509

    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.bootstrap_token import BootstrapToken
    from tpm_mtls_keygen.est_client import EstClient, EstExchange
    from tpm_mtls_keygen.keys import TpmKey
    from tpm_mtls_keygen.proof import Proof

Granted: TypeAlias = "tuple[bytes, tuple[x509.Certificate, ...]]"
"""The public key (DER SPKI) of the request, and the certificates that answered it."""


@dataclass(frozen=True)
class Application:
    """An application that may be made several times.

    Attributes:
        tpm: an open TPM.
        est: the CA.
        token: the bootstrap token, if there is one.
        name: the device's name, if it is known or wished for.
        proof: how the TPM vouches for the key; none for an application by token alone.
        load_key: loads the device key; called when a request is to be signed.
        now: the clock.
    """

    tpm: Tpm
    est: EstClient
    token: BootstrapToken | None
    name: str | None
    proof: Proof | None
    load_key: Callable[[], TpmKey]
    now: Callable[[], datetime]

    def attempt(self) -> Granted | Later:
        """Applies once; nothing stays loaded in the TPM while the CA decides.

        With evidence each time anew: a nonce is good for one request, and not for long.

        Raises:
            TokenRefusedError, RequestRefusedError, …: as `EstExchange.enroll`.
            EvidenceError: as `tpm_mtls_keygen.proof.Proof.request`.
        """
        with self.est.exchange() as exchange:
            csr = self._plain_csr if self.proof is None else self._request(exchange, self.proof)
            if isinstance(csr, Later):
                return csr
            shown = Shown(self.token, self.proof.advice if self.proof else None)
            answer = exchange.enroll(csr, shown, now=self.now())
        if isinstance(answer, Later):
            return answer
        return spki(parse_csr(csr).public_key()), answer

    @cached_property
    def _plain_csr(self) -> bytes:
        key = self.load_key()
        with key.loaded:
            return build_csr(self.tpm, key, common_name=self.name)

    def _request(self, exchange: EstExchange, proof: Proof) -> bytes | Later:
        return proof.request(self.tpm, exchange, self.load_key, common_name=self.name, now=self.now())
