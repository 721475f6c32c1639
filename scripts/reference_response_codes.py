"""The page about response codes, made from the table that ``tpm-mtls explain`` and every error use."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tpm_mtls.response_codes import LAYERS, Explained, Meaning, all_names, explain, named

if TYPE_CHECKING:
    from collections.abc import Iterable

_SOUGHT = (0x9A2, 0x98E, 0x99D, 0x126, 0x1C4, 0x18B, 0x1DF, 0x902, 0x903, 0x921, 0x14B, 0x100, 0x101, 0xA000A, 0x1E)

_HEAD = """\
# Response codes

<!-- made by scripts/reference.py: change core/tpm_mtls/response_codes/ instead -->

What a TPM and the software in front of it answer when something fails. `tpm-mtls explain` prints the same for one code:

```console
$ tpm-mtls explain 0x99d
$ tpm-mtls explain TPM_RC_POLICY_FAIL
$ tpm-mtls explain 'tpm tpm0: A TPM error (2306) occurred attempting to load a key'
```

Sources: TPM 2.0 Library part 2 rev 1.59, 6.6 (0x0a8 and 0x0a9: rev 1.83); TSS 2.0 Overview and Common Structures
Specification 1.0, 5.3; `tss2_common.h` of libtss2 4.2; `tabrmd.h` of tpm2-abrmd 3.0.

## A wrong password is not a policy failure

**0x9a2 (TPM_RC_BAD_AUTH) is a wrong or missing authorization value, and never a policy failure**, although guides and
forums say so. The policy failure, the one that other PCR values lead to, is **0x99d (TPM_RC_POLICY_FAIL)**. 0x98e
(TPM_RC_AUTH_FAIL) is a wrong authorization value, too, and one that counts: after some of them the TPM answers 0x921
(TPM_RC_LOCKOUT). Tests let a TPM answer all four.

## How to read a code

| bits | what |
|---|---|
| 16 to 23 | the layer that answered: 0 is the TPM |
| 7 | set: format one, about one handle, parameter or session; clear: format zero |
| 0 to 5, 8 to 11, 6 | format one: the number; which handle, parameter or session (bit 11 set); bit 6 set: parameter |
| 0 to 6, 8, 10, 11 | format zero: the number; set by TPM 2.0, clear by a TPM 1.2; a maker's own; a warning |

So 0x9a2 is number 0x22 for session 1, 0x1a2 the same for handle 1 and 0x1e2 for parameter 1. Below, codes of format one
are listed without what they are about, as 0x0a2. The kernel's log has them as decimal numbers: 2306 is 0x902.
"""

_TPM_PARTS = (
    ("Errors of format zero", lambda code: code < 0x80 or 0x100 <= code < 0x180),  # noqa: PLR2004 - as part 2 has them
    ("Errors of format one", lambda code: 0x80 <= code < 0x100),  # noqa: PLR2004 - the same
    ("Warnings", lambda code: 0x900 <= code < 0x980),  # noqa: PLR2004 - the same
)


def response_codes_page() -> str:
    """docs/reference/response-codes.md."""
    codes = sorted({code for name in all_names() for code in named(name)})
    parts = [_HEAD, "## The ones that people look for\n", _sought()]
    for title, is_in in _TPM_PARTS:
        parts += [f"## The TPM: {title[0].lower()}{title[1:]}\n", _table(filter(is_in, codes))]
    parts += ["## The layers\n", _layers(codes)]
    for number, layer in LAYERS.items():
        of_layer = [code for code in codes if code >> 16 == number and explain(code).layer == layer]
        if number and of_layer:
            title = f"{layer.short[0].upper()}{layer.short[1:]}"
            parts += [f"## {title}: 0x{number:x}0000\n", f"From {layer.text}.\n", _table(of_layer)]
    relay = [code for code in codes if explain(code).layer.short == "relay"]
    parts += ["## The relay of tpm-mtls\n", "In the resource manager's layer, beyond what others use.\n", _table(relay)]
    return "\n".join(parts)


def _layers(codes: list[int]) -> str:
    count = Counter(explain(code).layer for code in codes)
    rows = [f"| 0x{number:x} | {layer.text} | {count[layer] or 'as the TPM'} |" for number, layer in LAYERS.items()]
    return "\n".join(["| bits 16 to 23 | who | codes here |", "|---|---|---|", *rows, ""])


def _sought() -> str:
    rows = []
    for code in _SOUGHT:
        found = explain(code)
        meaning = _meaning(found)
        rows.append(f"| {code:#05x} | {_name(found)} | {_told(meaning)} | {meaning.hint} |")
    return "\n".join(["| code | name | what it means | what to do |", "|---|---|---|---|", *rows, ""])


def _table(codes: Iterable[int]) -> str:
    rows = []
    for code in codes:
        found = explain(code)
        meaning = _meaning(found)
        causes = "<br>".join(meaning.causes)
        rows.append(f"| {code:#05x} | {_name(found)} | {_told(meaning)} | {causes} | {meaning.hint} |")
    return "\n".join(
        ["| code | name | what it means | usual causes | what to do |", "|---|---|---|---|---|", *rows, ""]
    )


def _meaning(found: Explained) -> Meaning:
    if found.meaning is None:
        raise ValueError(f"{found.rc:#x} is not in the table")
    return found.meaning


def _name(found: Explained) -> str:
    return f"{found.name} ({found.about})" if found.about else found.name


def _told(meaning: Meaning) -> str:
    note = f". **Note:** {meaning.note}" if meaning.note else ""
    return f"{meaning.text}{note}"
