"""``tpm-mtls policy``."""

from __future__ import annotations

import click


@click.group()
def policy() -> None:
    """Policies of keys: what must hold for the TPM to use them."""
