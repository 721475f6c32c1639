"""What was logged and shown already: a state is told when it begins and when it ends, not each time it is looked at."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tpm_mtls.errors import StorageError
from tpm_mtls_agent.duties.record import DutiesRecord, save_duties

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from tpm_mtls.errors import TpmMtlsError

_GOOD: Final = ""


class Told:
    """The last state of each topic; ``log`` gets the changes, and ``duties.json`` of ``run_dir`` all.

    Attributes:
        record: what was noted.
    """

    def __init__(self, log: logging.Logger, run_dir: Path) -> None:
        self.record = DutiesRecord()
        self._log = log
        self._run_dir = run_dir
        self._states: dict[str, Hashable] = {}

    def state(self, topic: str, state: Hashable, text: str, *, level: int = logging.INFO) -> None:
        """``topic`` is in ``state``, in words ``text``; an empty text is not told."""
        if self._states.get(topic, _GOOD) == state:
            return
        self._states[topic] = state
        if text:
            self._log.log(level, "%s", text)

    def trouble(self, topic: str, error: TpmMtlsError) -> None:
        """``topic`` failed: told once for each class of error, as the words of one may change from time to time."""
        self.state(topic, type(error).__name__, f"{error}; {error.hint}", level=logging.WARNING)

    def good(self, topic: str, text: str) -> None:
        """``topic`` is well; told if it was not."""
        self.state(topic, _GOOD, text)

    def note(self, **changes: Any) -> None:  # noqa: ANN401 - fields of the record
        """Changes the record; `save` writes it."""
        self.record = msgspec.structs.replace(self.record, **changes)

    def save(self) -> None:
        """Writes the record; a folder that cannot be written to keeps no duty from being done."""
        try:
            save_duties(self._run_dir, self.record)
        except StorageError as error:
            self.trouble("run folder", error)
