"""``tpm-mtls server``."""

import click


@click.group()
def server() -> None:
    """Placeholder."""
