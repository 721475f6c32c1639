"""Files of large values: written and read. Their form, and what it protects: `tpm_mtls_agent.storage.envelope`."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from tpm_mtls.errors import StorageError
from tpm_mtls_agent.storage.envelope import make_envelope, parse_envelope
from tpm_mtls_agent.storage.record import KEY_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls_agent.storage.envelope import Place
    from tpm_mtls_agent.storage.secrets_folder import SecretsFolder
    from tpm_mtls_agent.storage.table import Entry
    from tpm_mtls_agent.storage.tpm_secrets import TpmSecrets


class ValueFiles:
    """The files in ``folder``, some of whose keys ``tpm`` seals."""

    def __init__(self, folder: SecretsFolder, tpm: TpmSecrets) -> None:
        self._folder = folder
        self._tpm = tpm

    def write(self, place: Place, value: bytes) -> bytes:
        """Writes the file for ``value``; returns its new key, which is to be kept in NV."""
        key = secrets.token_bytes(KEY_SIZE)
        self._folder.write(place.file, make_envelope(place, key, value))
        return key

    def write_sealed(self, place: Place, value: bytes, policy: Sequence[Assertion]) -> None:
        """Writes the file for ``value``, with its new key sealed in it: two commands."""
        key = secrets.token_bytes(KEY_SIZE)
        self._folder.write(place.file, make_envelope(place, key, value, self._tpm.seal(key, policy)))

    def read(self, place: Place, key: bytes) -> bytes:
        """The value in the file of ``place``.

        Raises:
            IdentityError: the file is gone or damaged, or an older one.
        """
        return parse_envelope(self._folder.read(place.file), place).open(key)

    def read_sealed(self, place: Place, policy: Sequence[Assertion]) -> bytes:
        """The value in the file of ``place``, whose key is sealed in it: four commands, with a policy on PCRs five.

        Raises:
            IdentityError: the file is gone or damaged, or another one's.
            PolicyRefusedError: the policy does not hold.
            ForeignKeyError: the TPM does not know the sealed key.
        """
        envelope = parse_envelope(self._folder.read(place.file), place)
        return envelope.open(self._tpm.unseal(envelope.sealed_key, policy))

    def remove(self, entry: Entry, *, but: Entry | None = None) -> None:
        """Removes the files of ``entry`` that ``but`` does not need; what cannot be removed the next start removes."""
        for file in entry.files - (but.files if but else frozenset()):
            with suppress(StorageError):
                self._folder.remove(file)
