"""docs/how-to/attest-a-fleet.md: its commands in their order, on a device with a real agent and a real backend."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from support.duty import Backend, duty_agent, enrolled_device, fleet_backend
from support.event_logs import boot, changed, recorded, to_bytes, with_digest_of
from support.fleet import fleet_ca
from support.how_to import FOLDER, HowTo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.duty import DutyAgent
    from support.fleet import Device
    from support.tpm import SimulatedTpm
    from tpm_mtls.event_log import EventLog

KERNEL = 34
"""The kernel's program among the recorded log's entries."""


class Story:
    """A device that boots, and the how-to's reader at the backend."""

    def __init__(self, device: Device, backend: Backend, folder: Path, tpm: SimulatedTpm) -> None:
        self._device = device
        self._backend = backend
        self._folder = folder
        self._boots = 0
        self._log = b""
        self.name = str(device.record()["device"])
        instead = {
            "sensor-17": self.name,
            "https://backend.example:8443": backend.url,
            "--out alice.pem": f"--out alice.pem --passphrase file:{device.ca.folder.parent / 'passphrase'}",
        }
        self.how_to = HowTo("attest-a-fleet", tpm, folder, instead)

    def types(self, script: str) -> str:
        """What a block of commands answers."""
        return self.how_to.run(script, DATABASE=self._backend.database).stdout

    def boots(self, log: EventLog) -> None:
        """Boots what ``log`` says."""
        boot(self._device.tpm, log)
        self._log = to_bytes(log)
        self._boots += 1

    @contextlib.contextmanager
    def agent(self) -> Iterator[DutyAgent]:
        """The device's agent since this boot, after the backend's first verdict."""
        folder = self._folder / f"agent-{self._boots}"
        folder.mkdir()
        (folder / "event-log").write_bytes(self._log)
        with duty_agent(self._device, folder, "--backend", self._backend.url) as agent:
            agent.until(agent.verdict, "the verdict")
            yield agent

    def state(self) -> str:
        """What the backend makes of the device."""
        return str(self._backend.server("device", "show", self.name)["state"])


def test_the_how_to(make_tpm: Callable[..., SimulatedTpm], tmp_path: Path) -> None:
    tpm = make_tpm(ek_certificates=True)
    with fleet_ca(tmp_path / "home") as ca:
        device = enrolled_device(tpm, ca, tmp_path / "disk" / "identity")
        (tmp_path / "ca").symlink_to(ca.folder)
        start, run_agent = _first_blocks()
        assert run_agent == "tpm-mtls agent run --backend https://backend.example:8443\n"
        options = start.replace("\\\n", "").split()
        gated = options[options.index("--require-attestation") :]
        with fleet_backend(ca, tmp_path / "backend", *gated) as backend:
            _tell(Story(device, backend, tmp_path, tpm))


def _tell(story: Story) -> None:
    right = recorded("uefi-secureboot")
    story.boots(right)
    with story.agent() as agent:
        assert agent.verdict()["trusted"]
    (see,) = story.how_to.blocks("See your fleet")
    assert f"{story.name}\tattested\tdefault\tpassed\tgood" in story.types(see)

    story.boots(changed(right, lambda entries: entries.__setitem__(KERNEL, with_digest_of(entries[KERNEL], b"6.18"))))
    with story.agent() as agent:
        seen = story.types(see)
        assert f"{story.name}: failing" in seen
        assert "kernel changed: /vmlinuz (sha256 " in seen
        approve, shut_out = story.how_to.blocks("When a device boots something else")
        story.types(approve)
        assert story.state() == "failing", "until its next quote"
        assert agent.attested_again()["trusted"]
    assert "is released: attested" in story.types(shut_out)

    group, values, signed = story.how_to.blocks("Say what devices should boot")
    story.types(group)
    story.boots(right)
    story.types(values)
    with story.agent() as agent:
        assert agent.verdict()["trusted"], (agent.verdict(), "its baseline is another boot, and does not count here")
        assert "signed policy" in story.types(signed)
        assert agent.attested_again()["trusted"]

    certificate, requests = story.how_to.blocks("From elsewhere, as an operator")
    story.types(certificate)
    answers = story.types(requests)
    listed, end = json.JSONDecoder().raw_decode(answers)
    assert [each["name"] for each in listed["devices"]] == [story.name]
    assert '"state":"quarantined"' in answers[end:]
    assert 'tpm_mtls_devices{state="attested"} 1' in answers
    (enroll,) = story.how_to.blocks("Devices without a certificate for their attestation key")
    assert "is an attestation key of sensor-18" in story.types(enroll)


def _first_blocks() -> list[str]:
    """Those before the first heading below the title."""
    text = (FOLDER / "attest-a-fleet.md").read_text().partition("\n## ")[0]
    return [part.partition("```")[0] for part in text.split("```sh\n")[1:]]
