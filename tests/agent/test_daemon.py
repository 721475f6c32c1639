"""The daemon at its socket: the documented protocol, bad input, order, limits, and its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import json
import os
import resource
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.agent import MemoryStore, RunningAgent, running_agent
from tpm_mtls.errors import StateError, StorageError, TpmUnavailableError, UsageError
from tpm_mtls.response_codes import tpm_error
from tpm_mtls_agent.settings import Limits
from tpm_mtls_agent.storage.sealed_store import SealedStore
from tpm_mtls_agent.storage.store import SecretStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

METHODS = {"set", "get", "delete", "label"}

GET = b'{"action":"get","name":"key"}'


def with_agent(folder: Path, test: Callable[[RunningAgent], Awaitable[None]], **options: Any) -> None:  # noqa: ANN401 - `running_agent`'s
    """Runs ``test`` with an agent."""

    async def run() -> None:
        async with running_agent(folder, **options) as agent:
            await test(agent)

    asyncio.run(run())


def error_of(answer: bytes) -> str:
    """The text of an answer that says what failed, without the TPM's code."""
    decoded = json.loads(answer)
    assert decoded.keys() == {"error", "rc"}
    assert decoded["rc"] == "0x0"
    return str(decoded["error"])


def test_the_documents_exchanges_are_answered_to_the_letter(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        first = b'{"action":"set","name":"third-party-api-key","value":"sk_live_abc123xyz"}'
        rotated = b'{"action":"set","name":"third-party-api-key","value":"sk_live_new_key_456"}'
        read = b'{"action":"get","name":"third-party-api-key"}'
        assert await agent.send(first) == b'{"ok":true,"index":"0x01520000"}'
        assert await agent.send(read) == b'{"ok":true,"value":"sk_live_abc123xyz"}'
        assert await agent.send(rotated) == b'{"ok":true,"index":"0x01520000"}'
        assert await agent.send(read) == b'{"ok":true,"value":"sk_live_new_key_456"}'
        assert await agent.send(b'{"action":"del","name":"third-party-api-key"}') == b'{"ok":true}'
        answer = json.loads(await agent.send(read))
        assert answer["error"].startswith("no secret has that name; ")
        assert answer["rc"] == "0x18b"

    with_agent(tmp_path, test)


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("pieces", [None, 1, 7])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_client_ends_its_request_as_it_likes(
    tmp_path: Path, *, end: bytes, pieces: int | None, half_close: bool
) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        assert await agent.send(GET + end, half_close=half_close, pieces=pieces) == b'{"ok":true,"value":"value"}'

    with_agent(tmp_path, test)


def test_what_is_sent_after_the_request_does_not_take_the_answer_away(tmp_path: Path) -> None:
    """A socket closed with bytes unread resets the connection: a newline sent late must not do that."""

    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        reader, writer = await asyncio.open_unix_connection(agent.socket)
        writer.write(GET)
        await agent.until(lambda: len(agent.store.order) == 1)
        await asyncio.sleep(0.05)
        writer.write(b"\n")
        await writer.drain()
        assert await reader.read() == b'{"ok":true,"value":"value"}'
        writer.close()
        await writer.wait_closed()

    with_agent(tmp_path, test)


def test_large_values_and_names_go_through(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        name, value = "n" * 255, "\x1f" * 65536
        assert (await agent.ask("set", name, value=value))["ok"]
        assert await agent.ask("get", name) == {"ok": True, "value": value}

    with_agent(tmp_path, test)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(GET + GET, "something behind the request", id="two objects"),
        pytest.param(b'{"action":"set","name":"key","value":"' + b"v" * 1_000_000 + b'"}', "more than", id="1 MB"),
        pytest.param(b"[" * 1_000_000, "no JSON object", id="1 MB of rubbish"),
        pytest.param(b'{"action":"get","name":"\xff"}', "is not UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"action":"get","name":5}', "is no string", id="wrong type"),
        pytest.param(b'{"action":"list","name":"key"}', "action is unknown", id="unknown action"),
        pytest.param(b'{"action":"set","name":"key"}', "no value to set", id="missing value"),
        pytest.param(rb'{"action":"get","name":"a\u0000"}', "a NUL", id="name with NUL"),
        pytest.param(b'{"action":"get","name":""}', "the name has 0 bytes", id="no name"),
    ],
)
def test_bad_input_is_answered_with_cause_and_remedy(tmp_path: Path, data: bytes, reason: str) -> None:
    async def test(agent: RunningAgent) -> None:
        error = error_of(await agent.send(data))
        assert reason in error.partition("; ")[0]
        assert error.partition("; ")[2]
        assert agent.store.order == []

    with_agent(tmp_path, test)


def test_half_a_request_and_silence_is_answered_after_a_while(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        assert "no complete request came within 0.2 seconds" in error_of(await agent.send(GET[:-1]))
        assert agent.log()[-1]["result"] == "UsageError"

    with_agent(tmp_path, test, limits=Limits(request=0.2))


def test_half_a_request_and_its_end_is_answered_at_once(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        assert "ends in the middle" in error_of(await agent.send(GET[:-1], half_close=True))

    with_agent(tmp_path, test)


def test_a_trickle_is_cut_off_in_all_not_byte_by_byte(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        reader, writer = await asyncio.open_unix_connection(agent.socket)
        for byte in GET[:20]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert "no complete request" in error_of(await reader.read())
        writer.close()

    with_agent(tmp_path, test, limits=Limits(request=0.2))


def test_a_look_without_a_word_is_neither_answered_nor_logged(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        assert await agent.send(b"", half_close=True) == b""
        assert await agent.send(b" \n", half_close=True) == b""
        assert agent.log() == []

    with_agent(tmp_path, test)


def reset(connection: socket.socket) -> None:
    """Closes as a killed process's kernel does, with nothing said."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("sent", [GET[:10], GET, b'{"action":"set","name":"key","value":"new"}'])
def test_a_client_killed_in_mid_request_disturbs_nobody(tmp_path: Path, sent: bytes) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"v" * 60_000)
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(agent.socket))
            client.send(sent)
            reset(client)
        assert (await agent.ask("get", "key"))["value"] in {"v" * 60_000, "new"}

    with_agent(tmp_path, test)


def test_a_client_that_does_not_take_its_answer_is_let_go(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"\x1f" * 65_536)
        client = socket.socket(socket.AF_UNIX)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(str(agent.socket))
        client.send(GET)
        await asyncio.sleep(0.4)
        assert (await agent.ask("get", "key"))["ok"]
        client.close()
        await agent.until(lambda: agent.connections() == 0)

    with_agent(tmp_path, test, limits=Limits(answer=0.2))


def test_200_clients_at_once_are_served_in_order_without_an_error(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.gate.clear()
        clients = []
        for number in range(200):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(agent.socket))
            client.send(b'{"action":"set","name":"%d","value":"v"}' % number)
            client.setblocking(False)
            clients.append(client)
        await asyncio.sleep(0.2)
        agent.store.gate.set()
        loop = asyncio.get_running_loop()
        for number, client in enumerate(clients):
            answer = await loop.sock_recv(client, 1000)
            assert json.loads(answer) == {"ok": True, "index": f"{0x01520000 + number:#010x}"}
            client.close()
        assert agent.store.order == [str(number).encode() for number in range(200)]

    with_agent(tmp_path, test)


def test_operations_never_overlap_and_run_in_one_thread(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        await asyncio.gather(*[agent.ask("set", f"n{number}", value="v") for number in range(50)])
        assert len(agent.store.threads) == 1
        assert agent.store.opened == 1

    with_agent(tmp_path, test)


def test_many_large_values_at_once_are_all_kept(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        answers = await asyncio.gather(*[agent.ask("set", f"n{number}", value="v" * 65_536) for number in range(40)])
        assert all(answer["ok"] for answer in answers)
        assert len(agent.store.values) == 40

    with_agent(tmp_path, test)


def test_one_account_has_a_cap_on_requests_at_once(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.gate.clear()
        waiting = [asyncio.create_task(agent.ask("set", f"n{number}", value="v")) for number in range(3)]
        await agent.until(lambda: len(agent.store.order) == 1 and agent.waiting() == 2)
        assert "too many requests at once" in error_of(await agent.send(GET))
        agent.store.gate.set()
        assert all(answer["ok"] for answer in await asyncio.gather(*waiting))
        assert (await agent.ask("get", "n0"))["ok"]

    with_agent(tmp_path, test, limits=Limits(requests_each=3))


def test_above_the_cap_for_all_clients_wait_and_get_their_turn(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        answers = await asyncio.gather(*[agent.ask("set", f"n{number}", value="v") for number in range(30)])
        assert all(answer["ok"] for answer in answers)

    with_agent(tmp_path, test, limits=Limits(connections=4))


def test_who_is_turned_away_takes_up_no_room(tmp_path: Path) -> None:
    """Even if it does not close: else one account could fill the cap for all."""

    async def test(agent: RunningAgent) -> None:
        silent = []
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(agent.socket))
            silent.append(client)
        await agent.until(lambda: agent.connections() == 2)
        for client in silent:
            client.close()

    with_agent(tmp_path, test, limits=Limits(requests_each=2))


def test_connections_that_are_answered_and_not_closed_yet_count_apart(tmp_path: Path) -> None:
    """A program that makes its next requests when the answers come may be quicker than its closing of the old ones."""

    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        clients = []
        for _ in range(9):
            reader, writer = await asyncio.open_unix_connection(agent.socket)
            clients.append((reader, writer))
            writer.write(GET)
            assert await reader.read() == b'{"ok":true,"value":"value"}'
        await agent.until(lambda: agent.connections() == 2)
        for _, writer in clients:
            writer.close()

    with_agent(tmp_path, test, limits=Limits(requests_each=2))


def test_a_request_that_waits_too_long_is_told_so_and_not_carried_out(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.gate.clear()
        first = asyncio.create_task(agent.ask("set", "first", value="v"))
        await agent.until(lambda: len(agent.store.order) == 1)
        assert (
            "did not get to this request within 0.3 seconds" in (await agent.ask("set", "second", value="v"))["error"]
        )
        agent.store.gate.set()
        assert (await first)["ok"]
        assert agent.store.order == [b"first"]

    with_agent(tmp_path, test, limits=Limits(queue=0.3))


def test_wrong_names_slow_their_account_down(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        for number in range(3):
            assert (await agent.ask("get", f"guess {number}"))["rc"] == "0x18b"
        answer = await agent.ask("get", "key")
        assert answer["error"].startswith(
            "this user asked for too many names that nobody has; check the name; ask again"
        )
        assert agent.store.order == [b"guess 0", b"guess 1", b"guess 2"]
        assert agent.log()[-1]["result"] == "AgentRefusedError"

    with_agent(tmp_path, test, limits=Limits(wrong_names=3, wrong_name_interval=60, wrong_name_wait=0.1))


def test_guesses_made_at_once_are_not_better_off(tmp_path: Path) -> None:
    """Nor do they wait for as long as for a busy TPM, if it was busy when they came."""

    async def test(agent: RunningAgent) -> None:
        agent.store.gate.clear()
        guesses = [asyncio.create_task(agent.ask("del", f"guess {number}")) for number in range(50)]
        await agent.until(lambda: agent.waiting() == 49)
        await asyncio.sleep(0.15)  # all are looked at once, when nothing is known of wrong names
        agent.store.gate.set()
        answers = await asyncio.gather(*guesses)
        assert [answer["rc"] for answer in answers].count("0x18b") == 3
        assert len(agent.store.order) == 3

    with_agent(tmp_path, test, limits=Limits(wrong_names=3, wrong_name_interval=60, wrong_name_wait=0.1))


def test_who_waits_for_its_wrong_names_is_served_after_the_pause(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        await agent.ask("get", "guess")
        assert await agent.ask("get", "key") == {"ok": True, "value": "value"}

    with_agent(tmp_path, test, limits=Limits(wrong_names=1, wrong_name_interval=0.2))


@pytest.mark.parametrize("rc", [0x14B, 0x921, 0x99D, 0x9A2, 0x98E, 0x1DF])
def test_what_the_tpm_refuses_is_answered_with_its_code(tmp_path: Path, rc: int) -> None:
    async def test(agent: RunningAgent) -> None:
        refused = tpm_error(rc, doing="read the secret", tcti="swtpm:port=1")
        agent.store.fault = refused
        assert await agent.ask("get", "key") == {"error": f"{refused}; {refused.hint}", "rc": f"{rc:#x}"}
        assert agent.log()[-1]["rc"] == f"{rc:#x}"
        agent.store.fault = None
        assert (await agent.ask("set", "key", value="v"))["ok"]

    with_agent(tmp_path, test)


def test_a_tpm_that_is_not_there_at_the_start_may_come_later(tmp_path: Path) -> None:
    store = MemoryStore()
    store.open_fault = TpmUnavailableError("no TPM answers", hint="is it there", tcti="swtpm:port=1")

    async def test(agent: RunningAgent) -> None:
        assert await agent.ask("get", "key") == {"error": "no TPM answers; is it there", "rc": "0x0"}
        assert "secret" not in agent.log()[-1]
        store.open_fault = None
        assert (await agent.ask("set", "key", value="v"))["ok"]

    with_agent(tmp_path, test, store=store)


def test_a_tpm_that_was_lost_is_opened_again(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.fault = TpmUnavailableError("no TPM answers", hint="is it there", tcti="swtpm:port=1")
        assert (await agent.ask("get", "key"))["error"].startswith("no TPM answers")
        assert agent.store.closed == 1
        agent.store.fault = None
        assert (await agent.ask("set", "key", value="v"))["ok"]
        assert agent.store.opened == 2

    with_agent(tmp_path, test)


@pytest.mark.parametrize("error", [UsageError("wrong", hint="h"), StorageError("unreadable", hint="h", path="p")])
def test_a_store_that_can_never_open_ends_the_start(tmp_path: Path, error: UsageError | StorageError) -> None:
    store = MemoryStore()
    store.open_fault = error

    async def start() -> None:
        async with running_agent(tmp_path, store=store):
            pass

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(start())
    assert not (tmp_path / "tpmd.sock").exists()


def test_a_fault_of_ours_ends_one_request_and_tells_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.fault = ValueError("the-secret-value")
        assert "internal error of the agent" in error_of(await agent.send(GET))
        agent.store.fault = None
        assert (await agent.ask("set", "key", value="v"))["ok"]

    with_agent(tmp_path, test)
    assert "ValueError" in caplog.text
    assert "the-secret-value" not in caplog.text


def test_the_log_knows_names_by_their_keyed_hash_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(agent: RunningAgent) -> None:
        await agent.ask("set", "my-name", value="my-value")
        await agent.ask("get", "my-name")
        await agent.ask("get", "other-name")
        await agent.ask("del", "my-name")
        await agent.ask("shout", "my-name")
        results = [(line.get("action"), line["result"], line.get("secret")) for line in agent.log()]
        mine, other = agent.store.label(b"my-name"), agent.store.label(b"other-name")
        assert results == [
            ("set", "ok", mine),
            ("get", "ok", mine),
            ("get", "NoSuchSecretError", other),
            ("del", "ok", mine),
            (None, "UsageError", None),
        ]
        assert agent.log()[0]["index"] == "0x01520000"
        assert (agent.log()[0]["pid"], agent.log()[0]["uid"]) == (os.getpid(), os.geteuid())

    caplog.set_level("DEBUG")
    with_agent(tmp_path, test)
    for path in tmp_path.iterdir():
        assert b"my-" not in path.read_bytes()
    assert "my-" not in caplog.text


def texts(thing: object) -> list[str]:
    """The strings among the attributes of ``thing``: it may be anything, some of which cannot be compared."""
    attributes = getattr(thing, "__dict__", None) or {}
    return [each for each in attributes.values() if isinstance(each, str)]


def test_nothing_is_kept_of_a_request_when_it_is_answered(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        secret = "a value of this test: " + "x" * 50
        await agent.ask("set", "key", value=secret)
        await agent.ask("get", "key")
        await agent.ask("del", "key")
        await agent.until(lambda: agent.connections() == 0)
        gc.collect()
        held = [each for each in gc.get_objects() if secret in texts(each)]
        kinds = {("tpm_mtls.secrets.protocol", "Request"), ("tpm_mtls_agent.requests.service", "_Job")}
        kinds.add(("tpm_mtls_agent.requests.protocol", "RequestReader"))
        requests = [each for each in gc.get_objects() if (type(each).__module__, type(each).__name__) in kinds]
        assert (held, requests) == ([], [])

    with_agent(tmp_path, test)


ALLOW = '[[allow]]\nuid = {uid}\nactions = ["get"]\nnames = ["{names}"]\n'


def allow_list(folder: Path, *, uid: int | None = None, names: str = "key") -> Path:
    path = folder / "allow.toml"
    path.write_text(ALLOW.format(uid=os.geteuid() if uid is None else uid, names=names))
    path.chmod(0o600)
    return path


def test_an_allow_list_is_kept_to_and_its_refusals_logged(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = agent.store.values[b"other"] = (1, b"value")
        assert (await agent.ask("get", "key"))["ok"]
        for action, name in (("get", "other"), ("set", "key"), ("del", "key")):
            error = error_of(await agent.send(json.dumps({"action": action, "name": name, "value": "v"}).encode()))
            assert f"may not {action} that name" in error
            assert (agent.log()[-1]["result"], agent.log()[-1]["secret"]) == (
                "AccessDeniedError",
                agent.store.label(name.encode()),
            )
        assert agent.store.order == [b"key"]

    with_agent(tmp_path, test, allow_list=allow_list(tmp_path))


def test_a_refusal_does_not_tell_whether_the_name_is_there(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"there"] = (1, b"value")
        assert await agent.ask("get", "there") == await agent.ask("get", "not there")

    with_agent(tmp_path, test, allow_list=allow_list(tmp_path))


def test_sighup_reads_the_allow_list_again_and_reopens_the_log(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = agent.store.values[b"other"] = (1, b"value")
        assert "error" in await agent.ask("get", "other")
        allow_list(tmp_path, names="other")
        (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
        await agent.reload()
        assert (await agent.ask("get", "other"))["ok"]
        assert len(agent.log()) == 1

    with_agent(tmp_path, test, allow_list=allow_list(tmp_path))


def test_a_damaged_allow_list_leaves_the_old_one_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = agent.store.values[b"other"] = (1, b"value")
        (tmp_path / "allow.toml").write_text("[[allow]")
        (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
        (tmp_path / "audit.jsonl").mkdir()
        await agent.reload()
        assert (await agent.ask("get", "key"))["ok"]
        assert "error" in await agent.ask("get", "other")

    with_agent(tmp_path, test, allow_list=allow_list(tmp_path))
    assert "the old allow-list stays in force" in caplog.text
    assert "the audit log goes on in the old file" in caplog.text


@pytest.mark.parametrize("strict", [False, True])
def test_what_cannot_be_logged_is_not_given_out_where_an_allow_list_is_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, strict: bool
) -> None:
    async def test(agent: RunningAgent) -> None:
        agent.store.values[b"key"] = (1, b"value")
        agent.break_log()
        for _ in range(2):
            answer = await agent.ask("get", "key")
            assert answer.get("value") == (None if strict else "value")
            assert ("cannot write" in answer.get("error", "")) == strict
        assert "error" in await agent.ask("get", "other")

    with_agent(tmp_path, test, allow_list=allow_list(tmp_path, names="*") if strict else None)
    assert caplog.text.count("cannot write") == 1


def test_at_its_end_requests_in_work_are_answered(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_agent(tmp_path) as agent:
            agent.store.gate.clear()
            waiting = [asyncio.create_task(agent.ask("set", f"n{number}", value="v")) for number in range(10)]
            await agent.until(lambda: len(agent.store.order) == 1 and agent.waiting() == 9)
            half = await asyncio.open_unix_connection(agent.socket)
            half[1].write(GET[:5])
            backlog = socket.socket(socket.AF_UNIX)
            backlog.connect(str(agent.socket))
            backlog.send(b'{"action":"set","name":"last","value":"v"}')
            agent.daemon.stop()
            await agent.until(lambda: not agent.socket.exists())
            agent.store.gate.set()
            assert all(answer["ok"] for answer in await asyncio.gather(*waiting))
            assert b"no complete request" in await half[0].read()
            half[1].close()
            backlog.settimeout(5)
            assert json.loads(await asyncio.to_thread(backlog.recv, 1000))["ok"]
            backlog.close()
        assert agent.store.closed == 1

    asyncio.run(run())


def test_at_its_end_who_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_agent(tmp_path, limits=Limits(ending=0.2)) as agent:
            agent.store.gate.clear()
            first, second = (asyncio.create_task(agent.send(GET)) for _ in range(2))
            await agent.until(lambda: len(agent.store.order) == 1 and agent.waiting() == 1)
            agent.daemon.stop()
            assert await asyncio.gather(first, second) == [b"", b""]

    asyncio.run(run())


def test_one_agent_serves_a_state_folder(tmp_path: Path) -> None:
    async def test(agent: RunningAgent) -> None:
        with pytest.raises(StateError, match="another agent runs in"):
            async with running_agent(tmp_path):
                pass
        assert (await agent.ask("set", "key", value="v"))["ok"]

    with_agent(tmp_path, test)


def test_both_stores_have_what_the_seam_says() -> None:
    wanted = {name: inspect.signature(method) for name, method in vars(SecretStore).items() if name in METHODS}

    assert wanted.keys() == METHODS
    for store in (SealedStore, MemoryStore):
        for name, signature in wanted.items():
            assert str(inspect.signature(getattr(store, name))) == str(signature), name


class FullSystem(socket.socket):
    """A listening socket in a system without a descriptor for another connection, once."""

    full = True

    def accept(self) -> tuple[socket.socket, Any]:
        if self.full:
            self.full = False
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_a_system_without_room_for_a_connection_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(agent: RunningAgent) -> None:
        connections = agent.daemon._connections
        with FullSystem(fileno=os.dup(connections._listening.fileno())) as full:
            connections._pause()
            connections.start(full)
            assert (await agent.ask("set", "key", value="v"))["ok"]
            connections._pause()

    with_agent(tmp_path, test)
    assert "cannot accept connections: Too many open files" in caplog.text


@pytest.mark.parametrize("hardest", [resource.RLIM_INFINITY, 0])
def test_whatever_the_limits_no_core_is_dumped(hardest: int) -> None:
    program = (
        "import resource, sys; from tpm_mtls_agent.hardening import harden; "
        f"resource.setrlimit(resource.RLIMIT_CORE, (0, {hardest})); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 2000)); harden(); "
        "print(*resource.getrlimit(resource.RLIMIT_CORE), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    least = 1 if hardest else 0
    assert done.stdout.split() == [str(least), str(least), "2000", "2000"]
