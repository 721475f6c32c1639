"""The seam between the daemon and what keeps the secrets.

The daemon calls a store from one thread, its TPM worker's, in which the store was also opened; `SecretStore.label`
alone may be called from any thread. What an operation raises goes to the client as it is (message, hint, the TPM's
code), so no message, hint or attribute of an error holds a name or a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class SecretStore(Protocol):
    """Keeps values by name so that they can be read on this TPM only.

    Names are 1 to 255 bytes of UTF-8 without NUL, values 0 to 65,536 bytes of UTF-8; the caller has checked that.
    Every operation may raise what `tpm_mtls.response_codes.tpm_error` makes of a TPM's answer (``TpmUnavailableError``
    and ``TpmRefusedError`` with their children), and `tpm_mtls.errors.StorageError` for the folder.
    """

    def set(self, name: bytes, value: bytes) -> int:
        """Keeps ``value`` under ``name``, in place of what was there; durable when it returns.

        Returns:
            The name's NV index, 0x01520000 to 0x015200FF; the same for as long as the name is there.
        """

    def get(self, name: bytes) -> bytes:
        """The value under ``name``.

        Raises:
            NoSuchSecretError: no secret has that name.
            PolicyRefusedError: it is bound to PCRs, and the machine booted something else.
            StorageRootKeyChangedError: the TPM was cleared or exchanged since; what is on the disk stays.
        """

    def delete(self, name: bytes) -> None:
        """Removes ``name`` and its value; its slot is free again.

        Raises:
            NoSuchSecretError: no secret has that name.
        """

    def label(self, name: bytes) -> str:
        """The keyed hash by which logs speak of ``name``, hex; sends no command, from any thread."""


OpenStore: TypeAlias = "Callable[[], AbstractContextManager[SecretStore]]"
"""Opens the TPM and the store, in the worker's thread: reconciles what an interrupted process left, and fails with
`tpm_mtls.errors.StateError` when another process has the same folder open. The storage's own is
`tpm_mtls_agent.storage.opening.open_store`."""
