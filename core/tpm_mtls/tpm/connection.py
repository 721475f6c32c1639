"""An open TPM: its keys, and all else that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.tpm.attestation import Attestation
from tpm_mtls.tpm.capabilities import Capabilities, read_facts
from tpm_mtls.tpm.counter import Counters
from tpm_mtls.tpm.ecdh import KeyAgreement
from tpm_mtls.tpm.endorsement import EndorsementKeys
from tpm_mtls.tpm.hierarchies import Hierarchies
from tpm_mtls.tpm.inventory import Inventory
from tpm_mtls.tpm.keys import Keys
from tpm_mtls.tpm.nv import NvMemory
from tpm_mtls.tpm.nv_secrets import NvSecrets
from tpm_mtls.tpm.pcrs import Pcrs
from tpm_mtls.tpm.policy_session import PolicySessions
from tpm_mtls.tpm.sealing import Sealing
from tpm_mtls.tpm.sessions import Sessions
from tpm_mtls.tpm.signing import Signing
from tpm_mtls.tpm.storage_root import StorageRootKey

if TYPE_CHECKING:
    from tpm_mtls.authorization import Secret
    from tpm_mtls.tpm.policy_session import Proof
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.values import LoadedKey, TpmFacts


class Tpm(Keys):
    """An open TPM; `tpm_mtls.tpm.opening.open_tpm` makes one.

    Every command may raise what `tpm_mtls.response_codes.tpm_error` makes of the TPM's answer; the docstrings name only
    what is particular to a command.

    Attributes:
        tcti: where it is.
        srk: its storage root key.
        endorsement: its endorsement keys and their certificates.
        attestation: what it says of its keys.
        nv: its NV memory.
        counters: counters in it.
        pcrs: its platform configuration registers.
        capabilities: what it says about itself.
        inventory: what it can do.
        sessions: sessions that keep secrets from its bus.
        sealing: data that it alone gives back.
        nv_secrets: secrets in its NV memory.
        key_agreement: secrets that it shares with somebody else.
        hierarchies: who may make and remove what, and its defence against trying.
    """

    def __init__(self, resources: Resources, srk_authorization: Secret | None, expected_srk_name: bytes | None) -> None:
        super().__init__(resources, srk_authorization)
        self.tcti = resources.tcti
        self.srk = StorageRootKey(self)
        self.nv = NvMemory(resources)
        self.endorsement = EndorsementKeys(self, self.nv, resources)
        self.attestation = Attestation(resources)
        self.counters = Counters(resources, self.nv)
        self.pcrs = Pcrs(resources)
        self.capabilities = Capabilities(resources)
        self.inventory = Inventory(resources)
        self.sessions = Sessions(resources, self.srk, expected_srk_name)
        policies = PolicySessions(resources, self.sessions)
        self.sealing = Sealing(self, resources, self.sessions, policies, srk_authorization)
        self.nv_secrets = NvSecrets(self, resources, self.sessions, policies)
        self.key_agreement = KeyAgreement(self, resources, self.sessions)
        self.hierarchies = Hierarchies(self.capabilities, self.srk, resources, self.sessions)
        self._signing = Signing(resources)

    def facts(self) -> TpmFacts:
        """Vendor, firmware and resetCount (two commands)."""
        with self._resources.command("read the TPM's properties"):
            return read_facts(self._context)

    def sign(self, key: LoadedKey, digest: bytes, *, hash_name: str, proof: Proof | None = None) -> bytes:
        """A signature over ``digest``, made by ``hash_name``: ``sha256``, ``sha384`` or ``sha512`` (one command).

        Args:
            key: a signing key.
            digest: what is signed.
            hash_name: of which kind it is.
            proof: the key's policy, if it has one: two commands more for one on PCRs, as in `PolicySessions.use`.

        Returns:
            ECDSA-Sig-Value in DER (RFC 3279, 2.2.3) for an ECC key, the RSASSA-PKCS1-v1_5 signature for an RSA key.

        Raises:
            AuthorizationError: the key has another authorization value.
            TpmLockoutError: too many wrong ones were tried.
            PolicyRefusedError: its policy does not hold now.
            PolicyError: a signed policy is needed, and there is none, or only wrong ones.
        """
        return self._signing.sign(key, digest, hash_name=hash_name, proof=proof)
