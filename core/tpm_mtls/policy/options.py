"""The options by which a command that makes keys or sealed objects is told of their policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def policy_options(function: F) -> F:
    """``--pcrs`` and what else `tpm_mtls.policy.new_policy.read_wish` takes, by the same names."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = [
        click.option(
            "--pcrs", metavar="BANK:N,…", help="Usable only while these PCRs are as now, such as sha256:0,2,4,7."
        ),
        click.option(
            "--pcr-values",
            type=file,
            multiple=True,
            help="Or as in this file (tpm-mtls policy record); may be repeated.",
        ),
        click.option(
            "--policy-signer",
            type=file,
            help="Usable while the machine's state is one that this operator signed (PEM public key; tpm-mtls policy "
            "sign).",
        ),
        click.option("--policy-ref", metavar="TEXT", help="What the operator's policies must be meant for."),
        click.option(
            "--counter",
            metavar="INDEX|none",
            help="NV index of the counter that retires old signed policies.  [default: 0x01500100]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function
