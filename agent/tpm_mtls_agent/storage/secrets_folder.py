"""The agent's folder: ``secrets/`` in the identity folder, for nobody else to read, and open in one process only.

``keys.json`` (the device keys, sealed by the TPM), ``table.json``, and the files of large values. These are written
atomically and durably; no file holds a name or a value in the clear. ``loaded.json`` need not outlast a power cut.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.errors import IdentityError, StateError
from tpm_mtls.files import PRIVATE_FILE, make_folder, read_capped, remove_file, storage_errors, write_atomic
from tpm_mtls.json_record import load_json_record
from tpm_mtls.policy.document import Hex, Name  # noqa: TC001 - msgspec reads the annotations
from tpm_mtls.structures import parse_public_area
from tpm_mtls.structures.sealed import SealedObject, sealed_object
from tpm_mtls.tpm.ledger import Ledger
from tpm_mtls_agent.storage import table as tables
from tpm_mtls_agent.storage.envelope import FILE_LIMIT, parse_file_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tpm_mtls.structures import PublicArea
    from tpm_mtls_agent.storage.table import Table

FOLDER: Final = "secrets"
KEYS: Final = "keys.json"
LEDGER: Final = "loaded.json"
TABLE: Final = "table.json"

_KEYS_FORMAT: Final = 1
_KEYS_LIMIT: Final = 8 * 1024
_HINT: Final = "restore the whole folder as it was; to begin anew without the secrets in it, move it away"


class SealedKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``keys.json``: the device keys, which only this TPM unseals.

    Attributes:
        format: version of this structure.
        srk_name: Name of the storage root key that they are sealed under: the one that the agent goes on expecting.
        srk_public: its public area, so that it need not be asked for.
        public: the sealed object's public area.
        private: its private part.
    """

    format: int = _KEYS_FORMAT
    srk_name: Name
    srk_public: Hex
    public: Hex
    private: Hex

    @classmethod
    def of(cls, sealed: SealedObject, srk: PublicArea) -> SealedKeys:
        """The file for ``sealed``, under ``srk``."""
        return cls(
            srk_name=srk.name.hex(),
            srk_public=srk.data.hex(),
            public=sealed.public.data.hex(),
            private=sealed.private.hex(),
        )

    @property
    def srk(self) -> PublicArea:
        """The storage root key."""
        return parse_public_area(bytes.fromhex(self.srk_public))

    @property
    def sealed(self) -> SealedObject:
        """What is sealed."""
        return sealed_object(parse_public_area(bytes.fromhex(self.public)), bytes.fromhex(self.private))

    def check(self) -> None:
        """Checks that the parts fit together.

        Raises:
            IdentityError, PemError: they do not.
        """
        _ = self.sealed
        if self.srk.name.hex() != self.srk_name:
            raise IdentityError("its storage root key has another Name", hint=_HINT)


class SecretsFolder:
    """The open folder; `open_folder` makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> frozenset[str]:
        """The names of all files in it."""
        with storage_errors(self.path, "read"):
            return frozenset(path.name for path in self.path.iterdir())

    def read(self, file: str) -> bytes:
        """The content of the file of a value.

        Raises:
            IdentityError: it is not there, or too large.
        """
        path = self.path / file
        if not path.exists():
            raise IdentityError(f"the file {path} of a secret's value is gone", hint="restore it, or set it again")
        return read_capped(path, limit=FILE_LIMIT)

    def write(self, file: str, data: bytes) -> None:
        """Writes the file of a value."""
        write_atomic(self.path / file, data, mode=PRIVATE_FILE)

    def remove(self, file: str) -> None:
        """Removes a file; a missing one is no error."""
        remove_file(self.path / file)

    def save(self, table: Table) -> None:
        """Writes ``table.json``."""
        self.write(TABLE, tables.encode_table(table))

    def save_keys(self, keys: SealedKeys) -> None:
        """Writes ``keys.json``: from then on the folder is this TPM's."""
        self.write(KEYS, msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """``loaded.json``: what this process has in the TPM, for the one after it if somebody kills it."""
        with closing(Ledger(self.path / LEDGER)) as ledger:
            yield ledger

    def load_keys(self) -> SealedKeys | None:
        """``keys.json``; none where nothing was ever kept.

        Raises:
            IdentityError: it is damaged; or it is missing, and there are secrets.
        """
        keys = load_json_record(
            self.path / KEYS,
            SealedKeys,
            limit=_KEYS_LIMIT,
            version=_KEYS_FORMAT,
            hint=_HINT,
            check=SealedKeys.check,
        )
        if keys is None and (load_table(self.path) or tables.Table()).entries + tuple(_value_files(self.files())):
            raise IdentityError(f"{self.path / KEYS} is missing, and the secrets beside it need it", hint=_HINT)
        return keys

    def load_table(self) -> Table:
        """``table.json``, which is there as soon as the keys are.

        Raises:
            IdentityError: it is damaged or missing.
        """
        table = load_table(self.path)
        if table is None:
            raise IdentityError(f"{self.path / TABLE} is missing", hint=_HINT)
        return table


def load_table(path: Path) -> Table | None:
    """``table.json`` of the folder ``path``, as it is on the disk; none where there is none.

    Raises:
        IdentityError: it is damaged.
        StorageError: it cannot be read.
    """
    return load_json_record(
        path / TABLE,
        tables.Table,
        limit=tables.LIMIT,
        version=tables.FORMAT,
        hint=_HINT,
        check=tables.check_table,
    )


@contextmanager
def open_folder(state_dir: Path) -> Iterator[SecretsFolder]:
    """The agent's folder in ``state_dir``, made if it is not there, and locked.

    Raises:
        StateError: another process has it open.
        StorageError: it cannot be made, or is not this user's own.
    """
    path = state_dir / FOLDER
    make_folder(path, mode=0o700)
    with storage_errors(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, whatever ends that
        except BlockingIOError as error:
            raise StateError(
                f"another process has {path} open", hint="one agent for each identity folder: tpm-mtls agent status"
            ) from error
        with storage_errors(path, "protect"):
            os.fchmod(descriptor, 0o700)
        yield SecretsFolder(path)
    finally:
        os.close(descriptor)


def _value_files(files: frozenset[str]) -> list[str]:
    return [file for file in files if parse_file_name(file)]
