"""``tpm-mtls keygen``."""

import click


@click.group()
def keygen() -> None:
    """Placeholder."""
