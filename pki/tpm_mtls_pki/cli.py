"""``tpm-mtls pki``."""

import click


@click.group()
def pki() -> None:
    """Placeholder."""
