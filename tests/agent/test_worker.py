"""The thread that speaks to the TPM: it gives it back while others need it, and goes on with secrets meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from support.agent import MemoryStore
from support.resource_manager import running_resource_manager
from tpm_mtls.errors import NoSuchSecretError, TpmUnavailableError
from tpm_mtls.tcti import is_raw
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.storage.opening import open_store
from tpm_mtls_agent.worker import StoreWorker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm


def with_worker(test: Callable[[StoreWorker, MemoryStore], Awaitable[None]], *, exclusive: bool = True) -> MemoryStore:
    """Runs ``test`` with a worker that has a store open; returns that store, closed."""
    store = MemoryStore()
    store.values[b"key"] = (1, b"value")

    async def run() -> None:
        worker = StoreWorker(store.open, exclusive=exclusive)
        await worker.open()
        try:
            await test(worker, store)
        finally:
            await worker.close()

    asyncio.run(run())
    assert store.opened == store.closed
    return store


async def get(worker: StoreWorker) -> bytes:
    return await worker.run(lambda store: store.get(b"key"))


def test_what_is_released_is_opened_again_by_the_next_operation() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        await worker.release()
        assert store.closed == 1
        await worker.release()
        assert (store.opened, store.closed) == (1, 1)
        assert await get(worker) == b"value"
        assert await get(worker) == b"value"
        assert (store.opened, store.closed) == (2, 1)

    with_worker(test)


def test_it_is_released_only_when_the_operation_in_progress_has_ended() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        store.gate.clear()
        getting = asyncio.create_task(get(worker))
        releasing = asyncio.create_task(worker.release())
        await asyncio.sleep(0.05)
        assert (store.closed, releasing.done()) == (0, False)
        store.gate.set()
        await releasing
        assert (await getting, store.closed) == (b"value", 1)

    with_worker(test)


def test_while_it_is_shared_it_is_closed_after_every_operation_and_secrets_go_on() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        async with worker.shared():
            assert store.closed == 1
            async with worker.shared():  # two others at once
                assert await get(worker) == b"value"
            with pytest.raises(NoSuchSecretError):
                await worker.run(lambda opened: opened.get(b"another"))
            assert (store.opened, store.closed) == (3, 3)
        assert await get(worker) == b"value"
        assert (store.opened, store.closed) == (4, 3)

    with_worker(test)


def test_a_block_that_fails_no_longer_shares_it() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        with pytest.raises(KeyError):
            async with worker.shared():
                raise KeyError
        await get(worker)
        assert (store.opened, store.closed) == (2, 1)

    with_worker(test)


def test_what_is_done_apart_is_done_in_the_same_thread_with_the_store_closed() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        def apart() -> tuple[int, int]:
            assert worker.busy_for() > 0
            return threading.get_ident(), store.closed

        assert await worker.apart(apart) == (*store.threads, 1)
        assert worker.busy_for() == 0
        assert await get(worker) == b"value"

        def fails() -> None:
            raise TpmUnavailableError("gone", hint="look", tcti="swtpm:")

        with pytest.raises(TpmUnavailableError):
            await worker.apart(fails)
        assert worker.busy_for() == 0
        assert await get(worker) == b"value"

    with_worker(test)


def test_with_a_resource_manager_nothing_is_closed() -> None:
    async def test(worker: StoreWorker, store: MemoryStore) -> None:
        await worker.release()
        async with worker.shared():
            await get(worker)
        assert await worker.apart(lambda: store.closed) == 0

    assert with_worker(test, exclusive=False).opened == 1


def test_behind_a_real_resource_manager_another_connection_works_beside_the_store(
    tpm: SimulatedTpm, tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_resource_manager(tpm, tmp_path / "bus", monkeypatch) as tcti:
        assert not is_raw(tcti)
        state_dir.mkdir()

        async def test() -> None:
            worker = StoreWorker(lambda: open_store(state_dir, tcti=tcti), exclusive=is_raw(tcti))
            await worker.run(lambda store: store.set(b"key", b"value"))

            def beside() -> int:
                with open_tpm(tcti) as opened:
                    return opened.facts().reset_count

            await worker.apart(beside)
            async with worker.shared():
                assert await get(worker) == b"value"
            await worker.close()

        asyncio.run(test())
