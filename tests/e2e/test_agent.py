"""The agent as a process on a simulated TPM: many clients, other languages, other machines, and what is to be found."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.agent_process import agent_process
from support.how_to import HowTo
from tpm_mtls.errors import AgentRefusedError, NoSuchSecretError, TpmMtlsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.agent_process import AgentProcess
    from support.tpm import SimulatedTpm

CLIENTS = 200
DOCUMENT = Path(__file__).parents[1] / "agent" / "requests" / "document_000.js"

# the guide's programs open /run/tpmd.sock, which a test cannot have
REDIRECT = """
const net = require('net');
const connect = net.createConnection;
net.createConnection = (path, ...others) => {
  if (path !== '/run/tpmd.sock') throw new Error(path);
  return connect(process.env.TEST_SOCKET, ...others);
};
"""

WORKFLOW = """
(async () => {
  const stored = await setSecret('abcd123', 'sk_live_...');
  const first = await getSecret('abcd123');
  const rotated = await setSecret('abcd123', 'sk_live_new_key_456');
  const second = await getSecret('abcd123');
  const key = '-----BEGIN PRIVATE KEY-----\\n' + 'k'.repeat(3000);
  await setSecret('ssl-private-key', key);
  const third = await getSecret('ssl-private-key') === key;
  const gone = [await deleteSecret('abcd123'), await getSecret('abcd123') === undefined];
  console.log(JSON.stringify([stored.ok, first, stored.index === rotated.index, second, third, ...gone]));
})()
"""


def ask_all_at_once(path: Path, requests: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The answers to as many clients, which have all sent their request before the first reads its answer."""
    clients = []
    for request in requests:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(json.dumps(request).encode())
        clients.append(client)
    answers = []
    for client in clients:
        with client, client.makefile("rb") as stream:
            answers.append(json.loads(stream.read()))
    return answers


def audit(agent: AgentProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (agent.state / "agent.audit.jsonl").read_text().splitlines()]


def test_200_clients_at_once_are_served_in_order_without_an_error(tpm: SimulatedTpm, tmp_path: Path) -> None:
    names = [f"name-{number}" for number in range(CLIENTS)]
    with agent_process(tpm, tmp_path) as agent:
        sets = [{"action": "set", "name": name, "value": f"value of {name}"} for name in names[: CLIENTS // 4]]
        indices = [answer["index"] for answer in ask_all_at_once(agent.socket, sets)]
        lines = audit(agent)
        assert [line["index"] for line in lines] == indices, "one after the other, in the order in which they came"

        labels = {line["index"]: line["secret"] for line in lines}
        gets = [{"action": "get", "name": names[number % len(sets)]} for number in range(CLIENTS)]
        answers = ask_all_at_once(agent.socket, gets)
        assert answers == [{"ok": True, "value": f"value of {each['name']}"} for each in gets]
        served = [line["secret"] for line in audit(agent)[len(lines) :]]
        assert served == [labels[indices[number % len(sets)]] for number in range(CLIENTS)]
        assert "Traceback" not in agent.end()


def test_the_guides_node_programs_do_what_the_guide_says(tpm: SimulatedTpm, tmp_path: Path) -> None:
    redirect = tmp_path / "redirect.js"
    redirect.write_text(REDIRECT)
    with agent_process(tpm, tmp_path) as agent:
        done = subprocess.run(
            ["node", "--require", redirect, "-"],
            input=DOCUMENT.read_text() + WORKFLOW,
            env={"PATH": os.environ["PATH"], "TEST_SOCKET": str(agent.socket)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        agent.end()
    assert json.loads(done.stdout) == [True, "sk_live_...", True, "sk_live_new_key_456", True, {"ok": True}, True]


def forms(text: str) -> Iterator[bytes]:
    """What a search should find, if it is anywhere."""
    data = text.encode()
    yield data
    yield data.hex().encode()
    yield text.encode("utf-16-le")
    yield base64.b64encode(data).rstrip(b"=")[:-1]  # the last character depends on what follows


def test_no_secret_and_no_name_is_to_be_found(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """In the folder, in the TPM's NV memory, in the logs; while it runs, after its end, and after a kill."""
    texts = {
        "stripe-api-key-prod": "sk_live_" + "4f" * 20,
        "ssl-private-key": "-----BEGIN PRIVATE KEY-----" + "x" * 3000,
    }
    said = ""
    for options in ([], ["--pcrs", "sha256:16"]):
        with agent_process(tpm, tmp_path, *options) as agent:
            for name, value in texts.items():
                agent.client.set(name, value)
                assert agent.client.get(name) == value
            with pytest.raises(NoSuchSecretError):
                agent.client.get(next(iter(texts)) + "-2")
            agent.raw(json.dumps({"action": "set", "name": next(iter(texts)), "value": 5}).encode())
            for found in everything(tpm, agent):
                assert_nothing_in(texts, found)
            said += agent.end()
    assert_nothing_in(texts, said.encode())


def everything(tpm: SimulatedTpm, agent: AgentProcess) -> Iterator[bytes]:
    """Each file of the agent's folder, each NV index as far as tpm2-tools read it, and the simulator's own memory."""
    files = [path for path in agent.state.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        yield path.name.encode() + path.read_bytes()
    dump = agent.socket.with_name("nv.dump")
    for index in tpm.handles("nv-index"):
        dump.unlink(missing_ok=True)
        yield tpm.tool("tpm2_nvreadpublic", index).stdout.encode()
        for authorization in (["-C", "o"], ["-P", "pcr:sha256:16"], []):
            yield tpm.tool("tpm2_nvread", *authorization, index, "-o", str(dump), check=False).stdout.encode()
            yield dump.read_bytes() if dump.exists() else b""
    yield from (path.read_bytes() for path in tpm.simulator.state.iterdir())


def assert_nothing_in(texts: dict[str, str], data: bytes) -> None:
    for text in [*texts, *texts.values()]:
        for form in forms(text[:48]):
            assert form not in data


def refusal(agent: AgentProcess, action: str = "get") -> tuple[str, str]:
    """The error that a request gets, and the TPM's code."""
    answer = agent.raw(json.dumps({"action": action, "name": "key", "value": "new"}).encode())
    return str(answer["error"]), str(answer["rc"])


def test_a_folder_of_another_machine_is_refused_and_kept(make_tpm: Callable[[], SimulatedTpm], tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
    tpm = make_tpm()
    with agent_process(make_tpm(), others) as agent:
        agent.client.set("key", "value")
        agent.end()
    with agent_process(tpm, ours) as agent:  # the second machine has a storage root key of its own
        agent.client.set("other", "value")
        agent.end()
    shutil.rmtree(ours / "state")
    shutil.copytree(others / "state", ours / "state")
    before = (ours / "state" / "secrets" / "table.json").read_bytes()
    with agent_process(tpm, ours) as agent:
        for action in ("get", "set", "del"):
            message, _ = refusal(agent, action)
            assert "storage root key" in message
        agent.end()
    assert (ours / "state" / "secrets" / "table.json").read_bytes() == before


def test_another_storage_root_key_is_said_so_until_the_right_one_is_back(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        agent.client.set("key", "value")
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
        tpm.tool("tpm2_createprimary", "-C", "o", "-G", "rsa", "-c", str(tmp_path / "other.ctx"))
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", str(tmp_path / "other.ctx"), "0x81000001")
        tpm.flush()
        message, _ = refusal(agent)
        assert "storage root key" in message
        with pytest.raises(TpmMtlsError, match="storage root key"):
            agent.client.set("key", "another")
        agent.end()
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    with agent_process(tpm, tmp_path) as agent:
        message, _ = refusal(agent)
        assert "storage root key" in message, "it is not there, and another one is not made in its place"
        with pytest.raises(AgentRefusedError):
            agent.client.get("key")
        agent.end()


def test_run_the_agent_as_the_how_to_says(tpm: SimulatedTpm, tmp_path: Path) -> None:
    how_to = HowTo("run-the-agent", tpm, tmp_path, {"/var/lib/tpm-mtls": "./state"})
    (block,) = how_to.blocks("Try it")
    start, _, others = block.partition("\n")
    assert start == "tpm-mtls agent run --socket ./tpmd.sock --state-dir ./state &"
    with agent_process(tpm, tmp_path) as agent:
        said = how_to.run(others).stdout
        assert re.match(
            r"0x015200..\nsk_live_abc123xyzprocess \d+ listens at tpmd.sock\nsecrets: 1, 1 in NV memory", said
        )
        refusal(agent)
        (wrong,) = how_to.run_section("See who asked")
        assert [json.loads(line)["result"] for line in wrong.stdout.splitlines()] == ["NoSuchSecretError"]
        agent.end()
