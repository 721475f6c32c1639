"""The program: reads commands, asks the layers, writes responses."""

from __future__ import annotations

import os

from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.layers import build_layers
from tpm_mtls_relay.observers import check_observers
from tpm_mtls_relay.options import parse_options
from tpm_mtls_relay.wire import HEADER, refusal, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.wire import Exchange


def main(arguments: list[str]) -> int:
    """Serves the program on stdin and stdout until it closes them; returns the exit status."""
    options = parse_options(arguments)
    if options.check:
        return check_observers(options)
    layers = build_layers(options)
    try:
        serve(0, 1, layers)
    finally:
        layers.close()
    return 0


def serve(reading: int, writing: int, answer: Exchange) -> None:
    """Answers the commands on the descriptor ``reading``, until its end."""
    while header := _read(reading, HEADER.size):
        try:
            command = header + _read(reading, size_of(header) - HEADER.size)
            response = answer(command)
        except RelayError as error:
            response = refusal(error)
        os.write(writing, response)


def _read(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            return b""
        data += piece
    return data
