"""A number or a name, found in the table."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpm_mtls.response_codes.format_one import FORMAT_ONE
from tpm_mtls.response_codes.format_zero import BAD_TAG, FORMAT_ZERO, SUCCESS
from tpm_mtls.response_codes.meaning import Meaning
from tpm_mtls.response_codes.relay import RELAY
from tpm_mtls.response_codes.resource_manager import RESOURCE_MANAGER
from tpm_mtls.response_codes.stack import BASE, DEFINED, SPECIAL, SPECIAL_NAMES
from tpm_mtls.response_codes.warnings_of_the_tpm import WARNINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_ONE_BIT = 0x080
"""Set in the codes that are about one handle, parameter or session."""

_FORMAT_ONE_NUMBER = 0x03F
_PARAMETER = 0x040
_VERSION_2 = 0x100  # in format zero: clear in a TPM 1.2's
_RESERVED = 0x200  # in format zero
_VENDOR = 0x400  # in format zero
_TPM_FORMAT = 0x1000  # a code of the TPM has twelve bits
_LAYER_SHIFT = 16
_CODE = (1 << _LAYER_SHIFT) - 1


@dataclass(frozen=True)
class Layer:
    """A layer of the software stack: bits 16 to 23 of a code.

    Attributes:
        short: its name in messages.
        prefix: of its codes' names.
        text: what it is.
    """

    short: str
    prefix: str
    text: str


LAYERS = {
    0: Layer("TPM", "TPM_RC_", "the TPM itself"),
    6: Layer("FAPI", "TSS2_FAPI_RC_", "libtss2's feature API (FAPI), which the tss2_ tools use"),
    7: Layer("ESAPI", "TSS2_ESYS_RC_", "libtss2's enhanced system API (ESAPI): programs, OpenSSL's provider"),
    8: Layer("SAPI", "TSS2_SYS_RC_", "libtss2's system API (SAPI), which builds commands"),
    9: Layer("MU", "TSS2_MU_RC_", "libtss2's marshalling (MU), which reads and writes structures and files"),
    10: Layer("TCTI", "TSS2_TCTI_RC_", "the transport to the TPM (TCTI)"),
    11: Layer("resource manager", "TSS2_RESMGR_RC_", "a resource manager: the kernel's /dev/tpmrm0, or tpm2-abrmd"),
    12: Layer("resource manager", "TSS2_RESMGR_TPM_RC_", "the TPM, as a resource manager handed it on"),
    13: Layer("policy", "TSS2_POLICY_RC_", "libtss2's policy library, from 4.0 on"),
}
_TPM_LAYERS = {0, 11, 12}
_RELAY_LAYER = Layer("relay", "", "the TPM relay of tpm-mtls, between a program and the TPM")

_VENDORS = Meaning(
    "vendor's response code",
    "a code that the TPM's maker has defined",
    ("a command of the maker's own", "a firmware update that was refused"),
    "ask the TPM's maker; which one: tpm-mtls tpm info",
)
_OF_TPM_1_2 = Meaning(
    "TPM 1.2 response code",
    "a code of a TPM 1.2",
    ("the chip is a TPM 1.2", "a number that is no response code"),
    "a TPM 2.0 is needed; some firmware can switch its TPM between 1.2 and 2.0",
)


@dataclass(frozen=True)
class Explained:
    """A code that somebody met.

    Attributes:
        rc: the code.
        layer: who answered it.
        about: what it is about, such as ``session 1``; empty where it says nothing.
        meaning: the table's row; none where the code is unknown.
    """

    rc: int
    layer: Layer
    about: str
    meaning: Meaning | None

    @property
    def name(self) -> str:
        """The code's name, or what is known of an unknown one."""
        return self.meaning.name if self.meaning else f"unknown {self.layer.short} response code"

    @property
    def is_named(self) -> bool:
        """Whether a specification, libtss2, tpm2-abrmd or the relay defines it."""
        return self.meaning is not None and self.meaning not in (_VENDORS, _OF_TPM_1_2)


def explain(rc: int) -> Explained:
    """What the table knows of the response code ``rc``, of 32 bits."""
    number = rc >> _LAYER_SHIFT
    if rc in RELAY:
        return Explained(rc, _RELAY_LAYER, "", RELAY[rc])
    layer = LAYERS.get(number) or Layer(f"layer {number}", "", f"a layer that no specification names, number {number}")
    special = SPECIAL.get(rc) or RESOURCE_MANAGER.get(rc)
    if special is not None:
        return Explained(rc, layer, "", special)
    if number in _TPM_LAYERS and (number == 0 or rc & _CODE not in BASE):
        return Explained(rc, layer, _about(rc & _CODE), _tpm_meaning(rc & _CODE))
    return Explained(rc, layer, "", _stack_meaning(rc, layer))


def describe(rc: int) -> str:
    """``rc`` in short, such as ``TPM_RC_BAD_AUTH, session 1, 0x9a2``."""
    found = explain(rc)
    return ", ".join(filter(None, [found.name, found.about, f"{rc:#05x}"]))


def named(name: str) -> tuple[int, ...]:
    """The codes called ``name``, which may lack its prefix (``BAD_AUTH``) or have another spelling's (``TPM2_RC_``).

    Of a code that can be about several things it is the one that is about nothing. A whole name comes before a part of
    others', the TPM's before those of other layers; none where nothing has that name.
    """
    spelling = name.upper().replace("TPM2_RC_", "TPM_RC_").replace("TSS2_ESAPI_RC_", "TSS2_ESYS_RC_")
    table = _names()
    for prefix in ("", "TPM_RC_"):
        if prefix + spelling in table:
            return (table[prefix + spelling],)
    return tuple(sorted(code for full, code in table.items() if full.endswith(f"_RC_{spelling}")))


def all_names() -> tuple[str, ...]:
    """Every name in the table."""
    return tuple(_names())


@functools.cache
def _names() -> Mapping[str, int]:
    tpm = {0: SUCCESS, 0x01E: BAD_TAG} | FORMAT_ZERO | WARNINGS
    codes = [*tpm, *(FORMAT_ONE_BIT | number for number in FORMAT_ONE), *RESOURCE_MANAGER, *RELAY]
    codes += [number << _LAYER_SHIFT | base for number, bases in DEFINED.items() for base in bases]
    return {explain(code).name: code for code in codes}


def _tpm_meaning(code: int) -> Meaning | None:
    if code >= _TPM_FORMAT:
        return None
    if code & FORMAT_ONE_BIT:
        return FORMAT_ONE.get(code & _FORMAT_ONE_NUMBER)
    known = {0: SUCCESS, 0x01E: BAD_TAG}.get(code) or FORMAT_ZERO.get(code) or WARNINGS.get(code)
    if known or code & _RESERVED:
        return known
    if code & _VENDOR:
        return _VENDORS
    return None if code & _VERSION_2 else _OF_TPM_1_2


def _about(code: int) -> str:
    """What a code of format one is about: part 2, 6.6.2."""
    number = code >> 8 & 0xF
    if not code & FORMAT_ONE_BIT or code >= _TPM_FORMAT:
        return ""
    if code & _PARAMETER:
        return f"parameter {number}" if number else "a parameter"
    if number & 8:
        return f"session {number - 8}" if number > 8 else "a session"  # noqa: PLR2004 - bit 11: it is about a session
    return f"handle {number}" if number else ""


def _stack_meaning(rc: int, layer: Layer) -> Meaning | None:
    base = BASE.get(rc & _CODE)
    if base is None or not layer.prefix:
        return None
    return replace(base, name=SPECIAL_NAMES.get(rc, f"{layer.prefix}{base.name}"))
