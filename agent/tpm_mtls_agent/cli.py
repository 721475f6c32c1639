"""``tpm-mtls agent``."""

from __future__ import annotations

import click


@click.group()
def agent() -> None:
    """The device's daemon: secrets sealed to this device and this boot."""
