"""Which response codes somebody means: by number, by name, or by a line of a log."""

from __future__ import annotations

import difflib
import errno
import os
import re

from tpm_mtls.errors import UsageError
from tpm_mtls.explain.libtss2_words import FORMAT_ONE, FORMAT_ZERO, LAYERS, STACK
from tpm_mtls.response_codes import all_names, explain, named
from tpm_mtls.response_codes.lookup import FORMAT_ONE_BIT

_LIMIT = 8192  # characters: the longest lines of journals and tpm2-tools are below 2,000
_DIGITS = 8
_LARGEST = (1 << 32) - 1  # TSS2_RC is a UINT32

_HINT = "give it as 0x9a2, as a decimal number, by its name, or as a line of a log: tpm-mtls explain --help"

_HEXADECIMAL = re.compile(r"0x(?P<digits>[0-9a-f]+)", re.IGNORECASE)
_BARE_HEXADECIMAL = re.compile(r"(?=.*\d)[0-9a-f]{3,8}", re.IGNORECASE)

_LAYER = r"(?:tpm|fapi|esapi|sys|mu|tcti|rmt|rm|policy)"  # as libtss2's Tss2_RC_Decode and so OpenSSL's provider say
_KERNEL_ERROR = re.compile(r"\berror:? -(?P<number>\d{1,3})\b")  # as drivers log what the chip's bus answered
_IN_A_LINE = re.compile(
    r"\b0x(?P<hexadecimal>[0-9a-f]{1,8})\b"
    r"|\b(?P<name>TPM2?_RC_\w+|TSS2_[A-Z]+_RC_\w+)"
    r"|TPM error \((?P<kernel>\d{1,10})\)"
    rf"|(?:^|[\s:])(?P<openssl>\d{{1,10}}) (?={_LAYER}:)"
    r"|\btpm:(?P<about>handle|parameter|session)\((?P<nth>[1-9]|1[0-5])\): ?(?P<of_format_one>[^\n]+)"
    r"|\btpm:(?:error|warn)\(2\.0\): ?(?P<of_format_zero>[^\n]+)"
    rf"|\b(?P<layer>{'|'.join(LAYERS)}): ?(?P<of_the_stack>[^\n]+)"
    r"|\b(?:rc|code|ErrorCode|status)\W{1,3}(?P<decimal>\d{3,10})\b",
    re.IGNORECASE,
)


def read_codes(text: str) -> tuple[int, ...]:
    """The response codes that ``text`` speaks of, each once, in its order.

    Args:
        text: one code (``0x9a2``, ``2466``, ``9a2``), a name with or without its prefix (several layers may have one of
            that name), or a line with codes in it, as the kernel, libtss2, tpm2-tools, OpenSSL and this program log
            them, or with libtss2's words for one. Numbers that are no code, such as handles, are passed over.

    Raises:
        UsageError: there is none in it, no code has that name, or it is too long.
    """
    text = text.strip()
    if len(text) > _LIMIT:
        raise UsageError(f"that is longer than {_LIMIT} characters", hint="give one line of the log")
    if re.fullmatch(r"\w+", text):
        return _one(text)
    codes = tuple(dict.fromkeys(code for found in _IN_A_LINE.finditer(text) for code in _codes(found)))
    if not codes and "tpm" in text.lower() and (found := _KERNEL_ERROR.search(text)):
        raise _kernel_error(int(found["number"]))
    if not codes:
        raise UsageError("there is no response code in that", hint=f"{_HINT}; without one: tpm-mtls doctor")
    return tuple(code for code in codes if not _told_by_another(code, codes))


def _kernel_error(number: int) -> UsageError:
    name = errno.errorcode.get(number, "unknown")
    return UsageError(
        f"-{number} is no response code, but the kernel's own error {name}: {os.strerror(number).lower()}",
        hint="the driver got no answer from the chip; what else it says: dmesg | grep -i tpm; then: tpm-mtls doctor",
    )


def other_reading(text: str) -> int | None:
    """The code that ``text`` would be as a hexadecimal number, where it is read as a decimal one."""
    text = text.strip()
    if not re.fullmatch(r"[0-9]{1,8}", text):
        return None
    number, other = int(text), int(text, 16)
    return other if _is_known(number) and other != number and _is_known(other) else None


def _one(word: str) -> tuple[int, ...]:
    if found := _HEXADECIMAL.fullmatch(word):
        return (_checked(int(found["digits"], 16)),)
    if re.fullmatch(r"[0-9]+", word):
        number = _checked(int(word[:20]))
        bare = int(word, 16) if len(word) <= _DIGITS else number
        return (bare if not explain(number).is_named and _is_known(bare) else number,)
    if codes := named(word):
        return codes
    if _BARE_HEXADECIMAL.fullmatch(word):
        return (int(word, 16),)
    raise UsageError(f"no response code is called {word[:80]}", hint=_similar(word))


def _checked(number: int) -> int:
    if number > _LARGEST:
        raise UsageError("a response code has 32 bits", hint=_HINT)
    return number


def _similar(word: str) -> str:
    whole = {name.upper(): name for name in all_names()}
    short = {name.rpartition("_RC_")[2]: name for name in whole}
    near = difflib.get_close_matches(word.upper(), [*whole, *short], n=3, cutoff=0.7)
    names = dict.fromkeys(whole.get(name) or short[name] for name in near)
    return f"did you mean {' or '.join(names)}?" if names else _HINT


def _codes(found: re.Match[str]) -> tuple[int, ...]:
    """What one place in a line means; nothing where it is no code that anybody knows."""
    if name := found["name"]:
        return named(name)
    if words := found["of_format_one"] or found["of_format_zero"] or found["of_the_stack"]:
        return _said(found, words)
    digits = found["hexadecimal"]
    code = int(digits, 16) if digits else int(found["kernel"] or found["openssl"] or found["decimal"])
    return (code,) if code <= _LARGEST and _is_known(code) else ()


def _said(found: re.Match[str], words: str) -> tuple[int, ...]:
    """The code for which libtss2 has these words."""
    if found["of_format_one"]:
        nth = int(found["nth"])
        about = {"handle": nth << 8, "parameter": nth << 8 | 0x40, "session": (nth | 8) << 8}[found["about"].lower()]
        bits = FORMAT_ONE_BIT | about  # part 2 rev 1.59, 6.6.2
        table = {bits | number: text for number, text in FORMAT_ONE.items()}
    elif found["of_format_zero"]:
        table = FORMAT_ZERO
    else:
        table = {LAYERS[found["layer"].lower()] << 16 | number: text for number, text in STACK.items()}
    return tuple(code for code, text in table.items() if words.startswith(text))


def _is_known(code: int) -> bool:
    return code > 0 and explain(code).is_named


def _told_by_another(code: int, codes: tuple[int, ...]) -> bool:
    """Whether ``code``, which a name stands for, is there a second time with what it is about."""
    found = explain(code)
    return not found.about and any(explain(other).about and explain(other).name == found.name for other in codes)
