"""``tpm-mtls trace``."""

from __future__ import annotations

import click


@click.command()
def trace() -> None:
    """Run a program and show every command that it sends to the TPM."""
