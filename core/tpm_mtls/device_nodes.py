"""The kernel's names for a TPM: the chip and its raw node ``tpmN``, and the resource manager's node ``tpmrmN``.

Linux, drivers/char/tpm: tpm-chip.c (``tpm%d``), tpm2-space.c (``tpmrm%d``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SILENT_CHIP: Final = "what does the kernel say: dmesg | grep -i tpm; a chip that hangs needs power off and on"
"""What to do where a node is there, and no TPM answers behind it."""


def is_tpm_node(node: str) -> bool:
    """Whether the name ``node`` is one that the kernel gives a TPM's node."""
    return re.fullmatch(r"tpm(rm)?\d+", node) is not None


def chip_name(node: str) -> str:
    """The chip behind the node with the name ``node``: ``tpm0`` for ``tpm0`` and ``tpmrm0``."""
    return node.replace("tpmrm", "tpm")


def is_managed(node: str) -> bool:
    """Whether the node with the name ``node`` is a resource manager's."""
    return node.startswith("tpmrm")


def managed_node(path: str) -> str:
    """The resource manager's node beside the raw one at ``path``; any other path as it is."""
    node = Path(path)
    return str(node.with_name(re.sub(r"tpm(?=\d+$)", "tpmrm", node.name)))
