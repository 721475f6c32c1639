"""Spans of time on the command line."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from tpm_mtls.durations import duration, parse_duration
from tpm_mtls.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("24h", 86_400), ("365d", 365 * 86_400)]
)
def test_a_number_and_a_unit_are_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "05m", "5", "m", "1.5h", "-1h", "366d", "1h30m", "1 h", "\u0661h", "9" * 10 + "s"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a span of time"):
        parse_duration(text)


def test_an_option_takes_one_and_has_one_as_its_default() -> None:
    @click.command()
    @click.option("--interval", callback=duration, default="1h", show_default=True)
    def command(*, interval: float) -> None:
        click.echo(repr(interval))

    assert CliRunner().invoke(command, []).output == "3600.0\n"
    assert CliRunner().invoke(command, ["--interval", "5m"]).output == "300.0\n"
    assert isinstance(CliRunner().invoke(command, ["--interval", "x"]).exception, UsageError)
