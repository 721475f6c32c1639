"""Commands to a TPM: the only place that sends any (ESAPI of libtss2, through tpm2-pytss).

    with open_tpm(tcti) as tpm:
        key = tpm.srk.create_key(KeyAlgorithm.ECC_P256)
        tpm.persist(key, 0x81000100)
        signature = tpm.sign(key, digest, hash_name="sha256")

Everything that was loaded is flushed when the block ends, whatever ends it. Secrets (`Tpm.sealing`, `Tpm.nv_secrets`)
and their authorization values cross the TPM's bus encrypted, in sessions that only the TPM can follow (`Tpm.sessions`).
The authorization values of keys travel as password authorizations, in the clear: such a session would cost two commands
more for each use (StartAuthSession, and a ReadPublic for the Name), which the command budget does not have.
A process that uses this module never loads OpenSSL's tpm2 provider.
"""

from tpm_mtls.tpm.attestation import Certification
from tpm_mtls.tpm.connection import Tpm
from tpm_mtls.tpm.keys import OWNER_HIERARCHY
from tpm_mtls.tpm.nv import NvIndex
from tpm_mtls.tpm.opening import open_tpm
from tpm_mtls.tpm.storage_root import SRK_HANDLE, StorageRootKey
from tpm_mtls.tpm.values import LoadedKey, PersistentObject, TpmFacts

__all__ = [
    "OWNER_HIERARCHY",
    "SRK_HANDLE",
    "Certification",
    "LoadedKey",
    "NvIndex",
    "PersistentObject",
    "StorageRootKey",
    "Tpm",
    "TpmFacts",
    "open_tpm",
]
