"""``tpm-mtls openssl-env``."""

import click


@click.command("openssl-env")
def openssl_env() -> None:
    """Placeholder."""
