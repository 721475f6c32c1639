"""What the commands of `tpm_mtls.tpm` give back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpm_mtls.errors import TpmMtlsError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm.resources import Resources


@dataclass(frozen=True)
class TpmFacts:
    """What a TPM says about itself.

    Attributes:
        vendor: TPM_PT_MANUFACTURER, up to four characters, such as ``IFX``.
        firmware: TPM_PT_FIRMWARE_VERSION_1 and 2 as four decimal numbers, such as ``7.85.4555.0``.
        reset_count: TPMS_CLOCK_INFO.resetCount: how often it was reset since it was last cleared.
    """

    vendor: str
    firmware: str
    reset_count: int


@dataclass(frozen=True)
class PersistentObject:
    """An object at a persistent handle.

    Attributes:
        handle: where.
        public: its public area.
        qualified_name: digest over the Names of all its ancestors and its own (part 1, 16); see
            `tpm_mtls.structures.qualified_name`.
    """

    handle: int
    public: PublicArea
    qualified_name: bytes


@dataclass(frozen=True)
class LoadedKey:
    """A key that the TPM can use now; flushed at the end of its own ``with`` block, or with the TPM's.

    Attributes:
        public: its public area.
        private: its private part, encrypted by its parent (content of TPM2B_PRIVATE); empty where the TPM keeps it.
        resource: opaque; only the `Tpm` that made it knows what it means.
    """

    public: PublicArea
    private: bytes
    resource: int = field(repr=False)
    _resources: Resources = field(repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._resources.flush(self.resource)
            return
        with suppress(TpmMtlsError):  # the first error is the one to tell
            self._resources.flush(self.resource)
