"""Where a TLS context's certificate and key come from, and whether that has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.errors import TpmRefusedError, TpmUnavailableError
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.openssl import keys, provider
from tpm_mtls.relay import key_tcti, policy_folders

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity
    from tpm_mtls.openssl.keys import LoadedKey
    from tpm_mtls.openssl.provider import TpmConnection

FileStamp: TypeAlias = tuple[int, ...]
"""By which a file is known to be the same: device, inode, size and time of the last change."""

Stamp: TypeAlias = tuple[FileStamp | None, ...]
"""Those of several files; none for no file."""

_OTHER_NAME = 0x70001
"""TSS2_ESYS_RC_GENERAL_FAILURE: it knows another key at this handle (Esys_TR_FromTPMPublic_Finish, esys_tr.c)."""


@dataclass(frozen=True)
class Source:
    """Where certificate and key come from, now and at each reload.

    Attributes:
        identity: key reference and certificate file.
        tcti: where the TPM is, as the caller gave it.
        authorization: the key's authorization value, or the passphrase of an encrypted software key.
        clock: the present time, for the certificate's validity.
        relay: whether a TPM key is used through the relay, as the caller said; see `tpm_mtls.relay.key_tcti`.
    """

    identity: Identity
    tcti: str | None
    authorization: Secret | None
    clock: Callable[[], datetime]
    relay: RelayUse | None = None

    def stamp(self) -> Stamp:
        """What the certificate file and the key file are right now; no TPM is asked."""
        key = self.identity.key
        return (stamp_of(self.identity.certificate), stamp_of(key.path) if isinstance(key, KeyFile) else None)

    def load_key(self, expected: str) -> tuple[LoadedKey, TpmConnection | None]:
        """The key, and the connection to its TPM if it is in one (3 commands).

        Args:
            expected: its type according to its certificate; see `tpm_mtls.openssl.keys.load_tpm_key`.

        Raises:
            TpmMtlsError: as `tpm_mtls.tls.client_context`.
        """
        key = self.identity.key
        if isinstance(key, KeyFile) and not key.is_tss2():
            return keys.load_software_key(key, self.authorization), None
        folders = policy_folders(key, self.identity.certificate)
        connection = provider.connect(key_tcti(self.tcti, folders, relay=self.relay))
        try:
            return self._load_tpm_key(connection, expected), connection
        except (TpmUnavailableError, TpmRefusedError) as error:
            # a resource manager that was restarted has closed the old connection; another key is at the handle
            if isinstance(error, TpmRefusedError) and error.rc != _OTHER_NAME:
                raise
            connection = provider.connect(connection.tcti, instead_of=connection)
            return self._load_tpm_key(connection, expected), connection

    def _load_tpm_key(self, connection: TpmConnection, expected: str) -> LoadedKey:
        with connection.loading, provider.turn(connection):
            return keys.load_tpm_key(self.identity.key, connection, self.authorization, expected=expected)


def stamp_of(path: Path) -> FileStamp | None:
    """What the file ``path`` is right now; none if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None  # reading it says why
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
