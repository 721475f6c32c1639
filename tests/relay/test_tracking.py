"""Tracking: the relay knows what is loaded, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.relay import relay_layers, relay_process
from support.tpm_keys import make_key
from tpm_mtls_relay import commands
from tpm_mtls_relay.objects import key_at
from tpm_mtls_relay.wire import code_of, simple_command

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


def test_a_persistent_key_is_known_after_it_was_asked_for(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path, handle=0x81000100)
    with relay_layers(tpm) as layers:
        key = key_at(0x81000100, layers.objects, layers)
        assert key is not None
        assert key.signs
        assert not key.needs_policy
        assert layers.objects.get(0x81000100) is key
