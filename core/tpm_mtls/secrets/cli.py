"""``tpm-mtls secret``."""

from __future__ import annotations

import click


@click.group()
def secret() -> None:
    """Secrets that exist only behind this device's TPM, kept by its agent."""
