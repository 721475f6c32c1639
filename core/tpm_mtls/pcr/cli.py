"""``tpm-mtls pcr``."""

from __future__ import annotations

import click


@click.group()
def pcr() -> None:
    """Platform configuration registers: what they are, what changed them, what they will be."""
