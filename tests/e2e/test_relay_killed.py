"""The relay is killed at random moments: the client recovers or says what happened, and nothing stays in the TPM.

TPM_MTLS_KILLED_HANDSHAKES=1000 makes more of it; TPM_MTLS_SEED repeats a run's moments.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.bound_keys import make_bound_key
from support.certificates import TestCa
from support.handshakes import attempt, handshake
from support.policies import pcr_policy
from support.tpm_keys import make_key
from tpm_mtls.errors import KeyGoneError, TpmMtlsError, TpmUnavailableError
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm import SimulatedTpm
    from support.tpm_keys import TpmKey

_log = logging.getLogger(__name__)

HANDSHAKES = int(os.environ.get("TPM_MTLS_KILLED_HANDSHAKES", "60"))
SEED = int(os.environ.get("TPM_MTLS_SEED", "1"))
KILLED = 0.6  # of the handshakes
LONGEST = 0.02  # seconds until the kill; a handshake takes 3 ms, starting a relay and loading a key 30

pytestmark = pytest.mark.timeout(max(180, HANDSHAKES))


def _key(kind: str, tpm: SimulatedTpm, folder: Path) -> TpmKey:
    if kind == "policy":
        return make_bound_key(tpm, folder, pcr_policy({16: "00" * 32}))
    return make_key(tpm, folder, handle=0x81000100 if kind == "persistent" else None)


def relays_of(process: int) -> list[int]:
    """Process ids of the relays that ``process`` started and that are still alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z" and b"tpm_mtls_relay" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@contextmanager
def killing_relays(chance: random.Random, counted: Counter[str]) -> Iterator[None]:
    """Mostly kills this process's relays once, at a random moment after the block's begin; counts them."""
    if chance.random() > KILLED:
        yield
        return

    def kill() -> None:
        for relay in relays_of(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(relay, signal.SIGKILL)
                counted["killed"] += 1

    timer = threading.Timer(chance.uniform(0, LONGEST), kill)
    timer.start()
    try:
        yield
    finally:
        timer.join()  # or it would kill again in the block after this


@pytest.mark.parametrize("kind", ["persistent", "file", "policy"])
def test_handshakes_while_the_relay_is_killed(tpm: SimulatedTpm, tmp_path: Path, kind: str) -> None:
    key = _key(kind, tpm, tmp_path)
    ca = TestCa(tmp_path)
    server = server_context(ca.software_identity("localhost"))
    server.num_tickets = 0  # so that every handshake is a full one
    client = client_context(ca.identity(key.reference, key.public_key, "device-1"), tcti=tpm.tcti, relay="always")
    chance = random.Random(SEED)  # noqa: S311 - moments to be repeated, no secret
    outcomes: Counter[str] = Counter()
    for _ in range(HANDSHAKES):
        with killing_relays(chance, outcomes):
            seen, error, _ = attempt(client, server)
        outcomes[_outcome(error)] += 1
        assert (seen is not None) == (error is None)
    _log.info("%s: of %d handshakes: %s", kind, HANDSHAKES, dict(outcomes))
    assert outcomes["killed"] >= HANDSHAKES / 4
    assert outcomes["succeeded"] >= HANDSHAKES / 4
    attempt(client, server)  # the last relay may have been killed after the last handshake
    handshake(client, server)
    assert server.session_stats()["hits"] == 0, "all were full ones"
    del client
    gc.collect()
    assert tpm.handles("transient") == []
    assert tpm.handles("loaded-session") == []
    assert tpm.handles("saved-session") == []


def _outcome(error: Exception | None) -> str:
    """What came of a handshake: its failure must have a name."""
    if error is None:
        return "succeeded"
    cause = error if isinstance(error, TpmMtlsError) else error.__cause__
    assert isinstance(cause, KeyGoneError | TpmUnavailableError), f"{error!r} because of {cause!r}"
    assert cause.hint
    return type(cause).__name__
