"""A response code in words, for a person and for a script."""

from __future__ import annotations

import textwrap
from typing import Any

from tpm_mtls.response_codes import Explained, explain, tpm_error
from tpm_mtls.response_codes.lookup import FORMAT_ONE_BIT

_WIDTH = 100
_COLUMN = 10

_UNKNOWN = "nothing that the specification or libtss2 defines"
_UNKNOWN_HINT = "was it copied wholly? 0x… is hexadecimal; tpm2_rc_decode may know a newer one"
_ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh")


def facts(rc: int) -> dict[str, Any]:
    """``rc`` as JSON: number, name, layer, subject, meaning, causes, remedy, note, class of error and exit status."""
    found = explain(rc)
    meaning = found.meaning
    error = tpm_error(rc, doing="do it", tcti="device:/dev/tpmrm0")
    return {
        "code": rc,
        "hex": f"{rc:#x}",
        "name": meaning.name if meaning else None,
        "layer": found.layer.text,
        "about": found.about or None,
        "means": meaning.text if meaning else _UNKNOWN,
        "causes": list(meaning.causes) if meaning else [],
        "remedy": meaning.hint if meaning else _UNKNOWN_HINT,
        "note": meaning.note or None if meaning else None,
        "error": type(error).__name__ if rc else None,
        "exit_status": error.exit_code if rc else 0,
    }


def words(rc: int) -> str:
    """``rc`` in some lines for a person."""
    known = facts(rc)
    found = explain(rc)
    error = f"{known['error']}, exit status {known['exit_status']}" if known["error"] else "none, exit status 0"
    rows = [
        ("from", found.layer.text),
        ("about", _about(found)),
        ("means", known["means"]),
        *(("causes" if index == 0 else "", cause) for index, cause in enumerate(known["causes"])),
        ("do", known["remedy"]),
        ("note", known["note"]),
        ("error", error),
    ]
    return "\n".join([f"{found.name} ({rc:#05x}, {rc})", *(_row(*row) for row in rows if row[1])])


def _row(label: str, text: str) -> str:
    indent = " " * _COLUMN
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=f"  {label}".ljust(_COLUMN),
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _about(found: Explained) -> str:
    """Which handle, parameter or session is meant, in words; or what a code of that format may be about."""
    kind, _, number = found.about.partition(" ")
    if not found.about:
        is_of_format_one = found.meaning is not None and found.rc & FORMAT_ONE_BIT and not found.rc & ~0xFF
        if not is_of_format_one:
            return ""
        handle, parameter, session = (f"{found.rc | bits:#x}" for bits in (0x100, 0x140, 0x900))
        return f"nothing; for the first handle, parameter or session it is {handle}, {parameter} or {session}"
    if not number.isdigit():
        return found.about
    ordinal = _ORDINALS[int(number)] if int(number) < len(_ORDINALS) else f"{number}th"
    whose = {"session": ", as a rule the one that authorizes the use of the first handle"} if number == "1" else {}
    return f"{found.about}: the command's {ordinal} {kind}{whose.get(kind, '')}"
