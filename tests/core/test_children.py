"""Child processes: what they inherit, and how they end."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from tpm_mtls.children import child_environment, end_child

_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('.', flush=True); signal.pause()"
_DOCILE = "import signal; print('.', flush=True); signal.pause()"


def test_a_child_does_not_speak_to_the_service_manager_in_its_parent_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("TPM_MTLS_TCTI", "swtpm:port=1")

    environment = child_environment()

    assert "NOTIFY_SOCKET" not in environment
    assert "WATCHDOG_USEC" not in environment
    assert environment["TPM_MTLS_TCTI"] == "swtpm:port=1"


@pytest.mark.parametrize(("program", "status"), [(_DOCILE, -signal.SIGTERM), (_STUBBORN, -signal.SIGKILL)])
def test_a_child_ends_when_told_and_if_not_is_killed(program: str, status: int) -> None:
    async def test() -> None:
        command = (sys.executable, "-c", program)
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        await child.stdout.readline()
        await end_child(child, patience=0.2 if status == -signal.SIGKILL else 20)
        assert child.returncode == status
        await end_child(child)

    asyncio.run(test())


def test_a_child_that_has_ended_is_left_alone() -> None:
    async def test() -> None:
        child = await asyncio.create_subprocess_exec("/bin/true")
        await child.wait()
        await end_child(child)
        assert child.returncode == 0

    asyncio.run(test())
