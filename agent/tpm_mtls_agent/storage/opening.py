"""Opening the store: the TPM, the folder, the device keys, and what an interrupted process left."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tpm_mtls.errors import IdentityError
from tpm_mtls.identity import load_record
from tpm_mtls.policy.new_policy import make_policy
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.storage.names import DeviceKeys
from tpm_mtls_agent.storage.sealed_store import SealedStore
from tpm_mtls_agent.storage.secrets_folder import FOLDER, SealedKeys, load_table, open_folder
from tpm_mtls_agent.storage.table import Statistics, Table, statistics_of
from tpm_mtls_agent.storage.tpm_secrets import OpenTpmSecrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tpm_mtls.authorization import HierarchyAuthorization, Secret
    from tpm_mtls.policy.new_policy import PolicyWish
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_agent.storage.secrets_folder import SecretsFolder


@contextmanager
def open_store(
    state_dir: Path,
    *,
    tcti: str | None = None,
    wish: PolicyWish | None = None,
    owner_authorization: HierarchyAuthorization | None = None,
    srk_authorization: Secret | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[SealedStore]:
    """The secrets of ``state_dir``, the identity folder; no other process may have them open.

    Five commands, if the last process was not killed: Load, StartAuthSession, Unseal and FlushContext for the device
    keys, and GetCapability for the NV indices. A policy is one more for each eight PCRs of its present state. What a
    kill left costs three or two more: `tpm_mtls_agent.storage.reconcile`, and what it left loaded in a TPM without
    resource manager as many: `tpm_mtls.tpm.leftovers`. The first time there are keys to be made: four, and three more
    for a storage root key, if it is missing.

    Args:
        state_dir: where ``secrets/`` is, or is made.
        tcti: where the TPM is.
        wish: what values that are set from now on are bound to; none for nothing. What is there stays as it is.
        owner_authorization: authorization value of the owner hierarchy, which makes NV indices.
        srk_authorization: authorization value of the storage root key.
        now: when the PCRs are read.

    Raises:
        StateError: another process has them open.
        StorageRootKeyChangedError: the TPM was cleared or exchanged, or the folder is another machine's: the secrets in
            it are lost to this TPM. Nothing was changed.
        ForeignKeyError: the device keys are damaged.
        IdentityError: a file of the folder is missing or damaged.
    """
    with open_folder(state_dir) as folder:
        sealed = folder.load_keys()
        with (
            folder.ledger() as ledger,
            open_tpm(
                tcti,
                owner_authorization=owner_authorization,
                srk_authorization=srk_authorization,
                expected_srk_name=_expected_srk(state_dir, sealed),
                ledger=ledger,
            ) as tpm,
        ):
            keys = _unseal(tpm, sealed) if sealed else _begin(tpm, folder)
            policy = make_policy(tpm, wish, state_dir, with_authorization=False, now=now()).assertions if wish else ()
            store = SealedStore(OpenTpmSecrets(tpm, state_dir, keys.authorization), folder, keys, policy)
            store.reconcile()
            yield store
            store.close()


def read_statistics(state_dir: Path) -> Statistics:
    """The numbers of the secrets in ``state_dir``, without a TPM, and while another process has them open.

    Raises:
        IdentityError: the table is damaged.
        StorageError: it cannot be read.
    """
    return statistics_of(load_table(state_dir / FOLDER) or Table())


def _expected_srk(state_dir: Path, sealed: SealedKeys | None) -> bytes | None:
    """Name of the storage root key: what the secrets are under, else the identity's, else whatever is there."""
    if sealed is not None:
        return bytes.fromhex(sealed.srk_name)
    identity = load_record(state_dir)
    return bytes.fromhex(identity.srk_name) if identity is not None and identity.is_tpm else None


def _begin(tpm: Tpm, folder: SecretsFolder) -> DeviceKeys:
    """New keys, in an empty folder; the table comes first, so that keys without one are damage."""
    keys = DeviceKeys.generate()
    sealed = tpm.sealing.seal(keys.pack())
    folder.save(Table())
    folder.save_keys(SealedKeys.of(sealed, tpm.sessions.srk()))
    return keys


def _unseal(tpm: Tpm, sealed: SealedKeys) -> DeviceKeys:
    """The keys; which storage root key the TPM has is only looked at where it refuses (`tpm_mtls.tpm.sessions`)."""
    tpm.srk.assume(sealed.srk)
    try:
        return DeviceKeys.unpack(tpm.sealing.unseal(sealed.sealed))
    except ValueError as error:
        raise IdentityError("the device keys are damaged", hint="restore the folder as it was") from error
