"""Policies for tests: an operator, states of a machine, and what tpm2-tools say a policy's digest is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthorize, PolicyDocument, PolicyPcr, pcr_digest
from tpm_mtls.policy.files import write_policy
from tpm_mtls.policy.signing import sign_policy, signer_of
from tpm_mtls.policy.states import MachineState, read_state
from tpm_mtls.structures import KeyAlgorithm, Tss2Key
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import Assertion, SignedPolicy
    from tpm_mtls.policy.signing import SigningKey

RECORDED = datetime(2026, 11, 22, 3, tzinfo=UTC)
ZEROS = "00" * 32


class Operator:
    """Somebody who signs policies, with a key in ``folder``: ``operator.key.pem`` and ``operator.pem``."""

    def __init__(self, folder: Path, *, key: SigningKey | None = None, passphrase: bytes | None = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.signer = signer_of(self.key.public_key())
        self.key_file = folder / "operator.key.pem"
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        self.key_file.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        self.public_file = folder / "operator.pem"
        self.public_file.write_bytes(
            self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    def authorize(self, policy_ref: bytes = b"") -> PolicyAuthorize:
        """The policy of a key that trusts this operator."""
        return PolicyAuthorize(signer=self.signer, policy_ref=policy_ref.hex())

    def sign(
        self, *policy: Assertion, version: int = 1, policy_ref: bytes = b"", description: str = ""
    ) -> SignedPolicy:
        """``policy``, approved."""
        return sign_policy(self.key, policy, policy_ref=policy_ref, version=version, description=description)


def make_policy_key(
    tpm: SimulatedTpm, path: Path, *policy: Assertion, algorithm: KeyAlgorithm = KeyAlgorithm.ECC_P256
) -> PolicyDocument:
    """A key with ``policy`` in the TSS2 PEM file ``path``, its policy beside it."""
    with open_tpm(tpm.tcti) as opened, opened.srk.create_key(algorithm, policy=policy_digest(policy)) as key:
        pem = Tss2Key(key.public, key.private, parent=SRK_HANDLE, empty_auth=True).to_pem()
        write_atomic(path, pem, mode=PRIVATE_FILE)
        document = PolicyDocument(name=key.public.name.hex(), policy=policy)
    write_policy(path.parent, document)
    return document


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A new RSA key."""
    return rsa.generate_private_key(65537, bits)


def present_state(tpm: SimulatedTpm, selection: str = "sha256:0,2,7") -> MachineState:
    """The state that the TPM's PCRs show."""
    with open_tpm(tpm.tcti) as opened:
        return read_state(opened.pcrs, selection, now=RECORDED)


def pcr_policy(values: dict[int, str] | None = None) -> PolicyPcr:
    """A policy for PCRs of the bank sha256 with these values; PCR 7 with zeros without them."""
    values = values or {7: ZEROS}
    pcrs = tuple(sorted(values))
    digest = pcr_digest([bytes.fromhex(values[pcr]) for pcr in pcrs])
    return PolicyPcr(bank="sha256", pcrs=pcrs, digest=digest.hex(), values=values, recorded="2026-11-22T03:00:00Z")


def extend(tpm: SimulatedTpm, pcr: int = 7, *, measured: str = "ab" * 32) -> None:
    """Something else was booted: changes a PCR."""
    tpm.tool("tpm2_pcrextend", f"{pcr}:sha256={measured}")


def trial_digest(tpm: SimulatedTpm, folder: Path, commands: Sequence[Sequence[str]]) -> bytes:
    """The policyDigest after tpm2-tools' policy ``commands`` in a trial session; ``SESSION`` stands for its file."""
    session = str(folder / "trial.ctx")
    tpm.tool("tpm2_startauthsession", "-S", session)
    try:
        for command in commands:
            words = [session if word == "SESSION" else word for word in command]
            tpm.tool(*words, "-L", str(folder / "trial.digest"), cwd=folder)
    finally:
        tpm.tool("tpm2_flushcontext", session)
    return (folder / "trial.digest").read_bytes()
