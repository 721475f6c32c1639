"""Where in the TPM's NV memory a secret is kept, if there. Pure.

Each name has a slot, which is an NV index, and keeps it as long as it lives, even while its value is in a file. Which
one follows from the name's keyed hash, with linear probing: the first free slot from there on. Names are found by the
table (`tpm_mtls_agent.storage.table`), not by probing again, so that a deletion needs to leave no mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from tpm_mtls.structures.nv_public import NvAttribute, NvPublic

if TYPE_CHECKING:
    from collections.abc import Container

FIRST_INDEX: Final = 0x01520000
SLOTS: Final = 256
"""NV indices 0x01520000 to 0x015200FF: as PhyOS' tpmd has them."""

SIZES: Final = (64, 128, 256, 512, 768)
"""Bytes of an index, so that a value which grows a little is overwritten in place. What the smallest chips (Infineon
SLB9670) write at a time is 768: a write is one command, whole or not at all."""

WRITES_LIMIT: Final = 90_000
"""Writes of a slot, before its values go to a file: NV memory endures some 100,000."""

_BY_VALUE: Final = NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA
_BY_POLICY: Final = NvAttribute.POLICYREAD | NvAttribute.OWNERWRITE | NvAttribute.NO_DA

Slot = Annotated[int, msgspec.Meta(ge=0, lt=SLOTS)]
PolicyDigest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An NV index of ours.

    Attributes:
        slot: its number.
        size: bytes of its data area, one of `SIZES`.
        policy: digest of the policy that its reading takes, hex; empty where it takes the agent's authorization value.
    """

    slot: Slot
    size: int
    policy: PolicyDigest = ""

    @property
    def index(self) -> int:
        """Its handle."""
        return index_of(self.slot)

    def public(self, *, written: bool = True) -> NvPublic:
        """Its public area, from which its Name follows.

        With a policy it has no authorization value, and the owner writes it: TPM2_NV_Read then needs no second session
        (`tpm_mtls.tpm.nv_secrets`). Neither is subject to the dictionary-attack lockout.
        """
        attributes = _BY_POLICY if self.policy else _BY_VALUE
        return NvPublic(self.index, self.size, attributes, bytes.fromhex(self.policy), written)


def shape_of(public: NvPublic) -> Shape | None:
    """The shape of ``public``, if it is one that this agent gives; others may give it, too."""
    slot = slot_of(public.index)
    if slot is None or public.size not in SIZES:
        return None
    shape = Shape(slot, public.size, public.policy.hex())
    return shape if shape.public(written=public.written) == public else None


def index_of(slot: int) -> int:
    """The NV index of ``slot``."""
    return FIRST_INDEX + slot


def slot_of(index: int) -> int | None:
    """The slot of the NV index ``index``; none if it is none of the agent's."""
    return index - FIRST_INDEX if 0 <= index - FIRST_INDEX < SLOTS else None


def home_slot(name: bytes) -> int:
    """Where the search for a free slot begins, for a name with the keyed hash ``name``."""
    return int.from_bytes(name, "big") % SLOTS


def choose_slot(name: bytes, taken: Container[int], worn: Container[int] = ()) -> int | None:
    """The slot for the keyed hash ``name``: the first free one, if possible not a worn one; none if all are taken."""
    home = home_slot(name)
    free = [slot for slot in ((home + step) % SLOTS for step in range(SLOTS)) if slot not in taken]
    return next((slot for slot in free if slot not in worn), free[0] if free else None)


def size_class(length: int) -> int | None:
    """Bytes of the smallest index that takes a record of ``length`` bytes; none if none does."""
    return next((size for size in SIZES if length <= size), None)
