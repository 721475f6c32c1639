"""The Node.js functions of PhyOS's guide "TPM secrets", to the letter (``document_000.js``), under real Node.js."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.agent import MemoryStore, RunningAgent, running_agent
from tpm_mtls.response_codes import tpm_error

if TYPE_CHECKING:
    from collections.abc import Sequence

FUNCTIONS = (Path(__file__).parent / "document_000.js").read_text()

REDIRECT = """
const net = require('net');
const connect = net.createConnection;
net.createConnection = (path, ...others) => {
  if (path !== '/run/tpmd.sock') throw new Error(path);
  return connect(process.env.TEST_SOCKET, ...others);
};
"""


async def node(agent: RunningAgent, usage: str) -> Any:  # noqa: ANN401 - whatever JSON it prints
    """What ``usage``, the body of an asynchronous function, returns in a program that has the three functions."""
    redirect = agent.folder / "redirect.js"
    redirect.write_text(REDIRECT)
    program = f"{FUNCTIONS}\n(async () => {{ {usage} }})().then((result) => console.log(JSON.stringify(result)))"
    process = await asyncio.create_subprocess_exec(
        *("node", "--require", redirect, "-"),
        env={"PATH": os.environ["PATH"], "TEST_SOCKET": str(agent.socket)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(program.encode()), 60)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def in_node(folder: Path, usages: Sequence[str], *, store: MemoryStore | None = None) -> list[Any]:
    """What each of ``usages`` returns, one program after the other, all with one agent."""

    async def run() -> list[Any]:
        async with running_agent(folder, store=store) as agent:
            return [await node(agent, usage) for usage in usages]

    return asyncio.run(run())


def test_a_secret_is_set_read_rotated_and_deleted(tmp_path: Path) -> None:
    workflow = """
      const stored = await setSecret('abcd123', 'sk_live_...');
      const first = await getSecret('abcd123');
      const rotated = await setSecret('abcd123', 'sk_live_new_key_456');
      const second = await getSecret('abcd123');
      const deleted = await deleteSecret('abcd123');
      return [stored, first, rotated, second, deleted, await getSecret('abcd123') === undefined];
    """

    assert in_node(tmp_path, [workflow]) == [
        [
            {"ok": True, "index": "0x01520000"},
            "sk_live_...",
            {"ok": True, "index": "0x01520000"},
            "sk_live_new_key_456",
            {"ok": True},
            True,
        ]
    ]


def test_another_program_reads_it_later_and_whatever_its_characters_are(tmp_path: Path) -> None:
    value = '-----BEGIN PRIVATE KEY-----\n\u00e9\U0001f511\0\x7f"\\' + "k" * 60_000
    stored, read = in_node(
        tmp_path,
        [
            f"return await setSecret('ssl-private-key', {json.dumps(value)})",
            "return await getSecret('ssl-private-key')",
        ],
    )

    assert stored["ok"]
    assert read == value


def test_200_programs_requests_at_once_are_all_served(tmp_path: Path) -> None:
    at_once = """
      const names = Array.from({ length: 200 }, (_, i) => `name-${i}`);
      const stored = await Promise.all(names.map((name) => setSecret(name, `value of ${name}`)));
      const read = await Promise.all(names.map((name) => getSecret(name)));
      return [stored.every((answer) => answer.ok), read.every((value, i) => value === `value of ${names[i]}`)];
    """

    assert in_node(tmp_path, [at_once]) == [[True, True]]


def test_an_error_is_an_object_with_cause_and_code(tmp_path: Path) -> None:
    store = MemoryStore()
    store.fault = tpm_error(0x921, doing="keep the secret", tcti="swtpm:port=1")

    [answer] = in_node(tmp_path, ["return await setSecret('abcd123', 'sk_live_...')"], store=store)

    assert answer["rc"] == "0x921"
    assert "lockout" in answer["error"]


def test_a_request_that_is_none_is_answered_too(tmp_path: Path) -> None:
    [answer] = in_node(tmp_path, ["return await setSecret('abcd123')"])

    assert answer["error"].startswith("there is no value to set; ")
    assert answer["rc"] == "0x0"
