"""``tpm-mtls seal`` and ``tpm-mtls unseal``."""

from __future__ import annotations

import click


@click.command()
def seal() -> None:
    """Seal a secret to this TPM."""


@click.command()
def unseal() -> None:
    """Get a sealed secret back, on the TPM that sealed it."""
