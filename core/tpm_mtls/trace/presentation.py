"""The trace as text for a person, or as JSON for a script."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click
import msgspec

from tpm_mtls.trace.records import SIGN
from tpm_mtls.trace.responses import response_words

if TYPE_CHECKING:
    from tpm_mtls.trace.records import Record, Sum, Summary

_HANDLES = {
    "0x40000001": "owner",
    "0x40000007": "null",
    "0x4000000a": "lockout",
    "0x4000000b": "endorsement",
    "0x4000000c": "platform",
}  # TPM_RH: TPM 2.0 Library part 2 rev 1.59, table 28
_LAST_PCR = 31
_NAME_SHOWN = 12  # digits: enough to tell keys apart
_BAR_CELLS, _BAR_SHORTEST, _BAR_LONGEST = 10, 1e-4, 1.0  # seconds; logarithmic
_QUIET_SESSIONS = ("password",)


class TextLines:
    """Lines for a person.

    Args:
        color: whether it goes to a terminal: with colours, and the durations as bars too.
    """

    def __init__(self, *, color: bool) -> None:
        self._color = color
        self._began: float | None = None
        self._pid: int | None = None

    def line(self, record: Record) -> str:
        """One line for a command; one before it where another program than the last one sent it."""
        if self._began is None:
            self._began = record.time
        words = [
            f"{record.time - self._began:+9.3f} s",
            f"{1000 * record.seconds:9.2f} ms",
            *([_bar(record.seconds)] if self._color else []),
            f"{record.command:<17}",
            *_about(record),
        ]
        if record.response_code:
            words.append(f"refused: {response_words(record.response_code)}")
        text = "TPM" + ("* " if record.command == SIGN else "  ") + "  ".join(words).rstrip()
        return self._program(record) + self._styled(text, record)

    def summary(self, summary: Summary, *, command: str, status: int) -> str:
        """What came together, and how much of it."""
        if not summary.total.count:
            return (
                f"TPM  no command reached the TPM: {command} does not use it, or was told another way to it "
                "(an option such as --tcti or -T)"
            )
        by_time = sorted(summary.commands.items(), key=lambda item: -item[1].seconds)
        rows = [_row(name, each) for name, each in by_time] if len(by_time) > 1 else []
        ended = f", {command} ended with status {status}" if status else ""
        return "\n".join([*rows, self._bold(f"TPM  {_sentence(summary)}{ended}")])

    def _program(self, record: Record) -> str:
        if record.pid == self._pid:
            return ""
        self._pid = record.pid
        return self._dim(f"TPM  {record.program} ({record.pid})") + "\n"

    def _styled(self, text: str, record: Record) -> str:
        if not self._color:
            return text
        if record.response_code:
            return click.style(text, fg="red")
        return click.style(text, fg="green", bold=True) if record.command == SIGN else text

    def _bold(self, text: str) -> str:
        return click.style(text, bold=True) if self._color else text

    def _dim(self, text: str) -> str:
        return click.style(text, dim=True) if self._color else text


class JsonLines:
    """One JSON object a line for each command, and one for the sum."""

    def line(self, record: Record) -> str:
        """The command as the relay told it, with the response code in words as ``result``."""
        return _json(msgspec.structs.asdict(record) | {"result": response_words(record.response_code)})

    def summary(self, summary: Summary, *, command: str, status: int) -> str:
        """The sum, under the name ``summary``."""
        return _json(
            {
                "summary": {
                    "program": command,
                    "exit_status": status,
                    "commands": summary.total.count,
                    "sign": summary.signatures,
                    "errors": summary.total.errors,
                    "seconds_in_tpm": round(summary.total.seconds, 6),
                    "by_command": {
                        name: {"count": each.count, "seconds": round(each.seconds, 6), "errors": each.errors}
                        for name, each in summary.commands.items()
                    },
                }
            }
        )


def _json(data: object) -> str:
    return msgspec.json.encode(data).decode()


def _sentence(summary: Summary) -> str:
    total = summary.total
    signatures = f", {summary.signatures} of them Sign" if summary.signatures else ""
    refused = f", {total.errors} refused" if total.errors else ""
    plural = "" if total.count == 1 else "s"
    return f"{total.count} command{plural}{signatures}{refused}, {_milliseconds(total.seconds)} in the TPM"


def _row(name: str, each: Sum) -> str:
    mean = f"{_milliseconds(each.seconds / each.count)} each" if each.count > 1 else ""
    return f"TPM  {each.count:5}  {name:<17} {_milliseconds(each.seconds):>11}  {mean}".rstrip()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"  # noqa: PLR2004 - three digits


def _bar(seconds: float) -> str:
    span = math.log(_BAR_LONGEST / _BAR_SHORTEST)
    share = math.log(max(seconds, _BAR_SHORTEST) / _BAR_SHORTEST) / span
    return f"{'█' * min(_BAR_CELLS, round(share * _BAR_CELLS)):<{_BAR_CELLS}}"


def _about(record: Record) -> list[str]:
    words = [_handle(handle) for handle in record.handles]
    shown = {key.kind for key in record.keys}
    words += [f"{key.kind} {key.name[:_NAME_SHOWN]}…".strip() for key in record.keys]
    words += [_detail(name, value) for name, value in record.details.items() if name != "kind" or value not in shown]
    words += [f"{session} session" for session in record.sessions if session not in _QUIET_SESSIONS]
    return words


def _handle(handle: str) -> str:
    number = int(handle, 16)
    return f"pcr-{number}" if number <= _LAST_PCR else _HANDLES.get(handle, handle)


def _detail(name: str, value: str | int) -> str:
    if name == "bytes":
        return f"{value} bytes"
    if name == "made":
        return f"→ {value}"
    return str(value) if name in {"kind", "scheme", "hash", "pcrs", "capability"} else f"{name} {value}"
