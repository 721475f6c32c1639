"""``tpm-mtls client``."""

import click


@click.group()
def client() -> None:
    """Placeholder."""
