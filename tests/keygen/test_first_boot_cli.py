"""``tpm-mtls keygen first-boot`` and ``status``, as typed."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support import lying_ca
from support.enrollment import DEVICE, Bench
from support.lying_ca import LyingCa
from tpm_mtls.cli import run
from tpm_mtls_keygen.issued import due_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def bench(tpm: SimulatedTpm, tmp_path: Path) -> Iterator[Bench]:
    with LyingCa(tmp_path) as ca:
        yield Bench(tpm, ca, tmp_path / "state", ca.make_token(DEVICE))


def status(bench: Bench, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert run(bench.command("--json", *options, verb="status")) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_says_as_whom_it_enrolled_and_the_second_time_that_it_is(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench.command()) == 0
    assert capsys.readouterr().out == "enrolled as sensor-17\n"
    assert run(bench.command()) == 0
    assert capsys.readouterr().out == "already enrolled as sensor-17\n"
    assert run(bench.command("--json")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "changed": False,
        "restored": False,
        "device": "sensor-17",
        "is_tpm": True,
        "key": "handle:0x81000100",
        "state_dir": str(bench.folder),
        "ignored": None,
    }


def test_it_takes_the_key_s_form_algorithm_and_handle(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.command("--handle", "0x81000200", "--algorithm", "ecc-p384")) == 0

    capsys.readouterr()
    found = status(bench, capsys, "--verify")
    assert (found["key"], found["algorithm"]) == ("handle:0x81000200", "ecc-p384")
    bench.assert_enrolled()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--key", "tss2", "--handle", "0x81000200"], 2, "a key file has no handle"),
        (["--handle", "0x40000001"], 5, "not a persistent handle"),
        (["--wait", "-1"], 2, "invalid value for '--wait'"),
        (["--key", "cloud"], 2, "invalid value for '--key'"),
        (["--auth", "secret"], 2, "prompt, file:PATH or credential:NAME"),
        (["--device", "sensor-18"], 2, "is for 'sensor-17', not for 'sensor-18'"),
        (["--tcti", "nonsense"], 3, "not a TCTI string"),
        (["--ca", "http://localhost"], 2, "not https"),
    ],
)
def test_wrong_options_are_told_and_nothing_is_made(
    bench: Bench, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    assert run(bench.command(*options)) == code

    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert "tpm-mtls: hint: " in shown.err
    assert bench.own_handles() == []


def test_the_process_ends_with_the_error_s_code_and_two_lines(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = ["tpm-mtls", *bench.command("--ca", f"https://localhost:{port}")]

    outcome = subprocess.run(command, capture_output=True, text=True, check=False)

    assert outcome.returncode == 6
    assert outcome.stdout == ""
    error, hint = outcome.stderr.splitlines()
    assert error == f"tpm-mtls: error: the CA at https://localhost:{port} cannot be reached: connection refused"
    assert hint.startswith("tpm-mtls: hint: check the URL")


def test_openssl_s_tpm2_provider_is_never_loaded(bench: Bench) -> None:
    program = (
        "import sys; from tpm_mtls.cli import run; code = run(); maps = open('/proc/self/maps').read(); "
        "assert 'libssl' in maps; sys.exit(code or 'tpm2.so' in maps)"
    )

    assert subprocess.run(["python", "-c", program, *bench.command()], check=False, capture_output=True).returncode == 0


def test_no_secret_is_shown(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.ca.next("simpleenroll", lying_ca.status(401))

    assert run(["--debug", *bench.command()]) == 7

    shown = capsys.readouterr()
    assert "correct-horse" not in shown.err + shown.out
    assert "correct-horse" not in "".join(path.read_text() for path in bench.folder.iterdir())


def test_it_waits_for_a_ca_that_asks_for_patience(bench: Bench) -> None:
    bench.ca.next("simpleenroll", lying_ca.status(503, retry_after=0))

    assert run(bench.command("--wait", "5")) == 0

    bench.assert_enrolled()


def test_the_service_manager_hears_how_far_it_is(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert run(bench.command()) == 0
        manager.setblocking(False)
        said = []
        while True:
            try:
                said.append(manager.recv(1000).decode())
            except BlockingIOError:
                break

    assert said == [
        f"STATUS=asking the CA at {bench.ca.url} for its certificates",
        "STATUS=making the TPM's storage root key",
        "STATUS=making the device key in the TPM: ecc-p256, handle:0x81000100",
        "STATUS=asking the CA for a certificate for sensor-17",
        "STATUS=keeping a copy of the identity in the TPM's NV memory",
        "STATUS=enrolled as sensor-17",
    ]


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_of_a_new_device(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(bench, capsys, "--verify")

    assert found["state"] == "not started"
    assert found["device"] is None
    assert found["problems"] == []


def test_status_of_an_unfinished_first_boot(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.ca.next("simpleenroll", lying_ca.cut_connection())
    assert run(bench.command()) == 6
    capsys.readouterr()

    found = status(bench, capsys, "--verify")

    assert (found["state"], found["pending"]) == ("unfinished", "asking the CA for a certificate")
    assert (found["key"], found["algorithm"]) == ("handle:0x81000100", "ecc-p256")
    assert found["problems"] == []
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")
    assert status(bench, capsys)["problems"] == []
    [problem] = status(bench, capsys, "--verify")["problems"]
    assert "was not made yet, or is gone" in problem


def test_status_with_the_certificate_there_but_not_recorded(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.ca.next("simpleenroll", lying_ca.cut_connection())
    assert run(bench.command()) == 6
    journal = (bench.folder / "first-boot.json").read_bytes()
    assert run(bench.command()) == 0
    (bench.folder / "identity.json").unlink()
    (bench.folder / "first-boot.json").write_bytes(journal)
    capsys.readouterr()

    assert status(bench, capsys)["pending"] == "writing the identity"


def test_status_of_an_enrolled_device(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.command("--key", "tss2")) == 0
    capsys.readouterr()

    found = status(bench, capsys, "--verify")

    assert found == {
        "state": "enrolled",
        "pending": None,
        "device": "sensor-17",
        "is_tpm": True,
        "key": "device.key.pem",
        "algorithm": "ecc-p256",
        "serial": f"{bench.ca.issued[0].serial_number:x}",
        "not_after": bench.ca.issued[0].not_valid_after_utc.isoformat(),
        "days_left": 89,
        "renewal_due": due_at(bench.ca.issued[0]).isoformat(),
        "enrolled_by": "token",
        "ek_sha256": None,
        "attestation_key": False,
        "mirror": "current",
        "tpm_vendor": "IBM",
        "tpm_firmware": bench.record()["tpm_firmware"],
        "ca_url": bench.ca.url,
        "problems": [],
    }
    assert run(bench.command(verb="status")) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "enrolled as sensor-17"
    assert "key: device.key.pem (ecc-p256)" in text
    assert "89 days left" in text

    (bench.folder / "install.json").write_text("{}")
    assert status(bench, capsys)["state"] == "unfinished"
    assert status(bench, capsys)["pending"] == "finishing a change of the identity"


@pytest.mark.parametrize(
    ("disturb", "expected"),
    [
        (("tpm2_nvundefine", "0x01500000", "-C", "o"), "none"),
        (("tpm2_nvwrite", "0x01500000", "-C", "o", "-i", "/etc/hostname"), "occupied"),
    ],
)
def test_status_says_what_the_tpm_remembers(
    bench: Bench, capsys: pytest.CaptureFixture[str], disturb: tuple[str, ...], expected: str
) -> None:
    assert run(bench.command()) == 0
    bench.tpm.tool(*disturb)
    capsys.readouterr()

    assert status(bench, capsys, "--verify")["mirror"] == expected
    assert status(bench, capsys)["mirror"] is None


@pytest.mark.parametrize("content", [None, "damaged"])
def test_a_mirror_of_something_else_is_stale(
    bench: Bench, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    assert run(bench.command()) == 0
    path = bench.folder / "device.cert.pem"
    path.write_text(content or path.read_text() + bench.ca.trust.read_text())
    capsys.readouterr()

    assert status(bench, capsys, "--verify")["mirror"] == "stale"


def test_status_needs_no_tpm_unless_told_to_verify(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.command()) == 0
    bench.tpm.stop()
    capsys.readouterr()

    assert status(bench, capsys)["state"] == "enrolled"
    assert run(bench.command("--verify", verb="status")) == 3


def test_status_without_verification_does_not_import_pytss(bench: Bench) -> None:
    program = "import sys; from tpm_mtls.cli import run; run(); sys.exit('tpm2_pytss' in sys.modules)"
    command = ["python", "-c", program, *bench.command(verb="status")]

    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_status_tells_what_is_wrong(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.command("--key", "tss2")) == 0
    capsys.readouterr()
    (bench.folder / "device.key.pem").chmod(0o644)
    (bench.folder / "ca.cert.pem").write_text("")
    bench.tpm.tool("tpm2_clear", "-c", "p")

    problems = status(bench, capsys, "--verify")["problems"]

    assert len(problems) == 3
    assert "ca.cert.pem holds no certificates" in problems[0]
    assert "device.key.pem can be read by other users" in problems[1]
    assert "cannot be loaded: this is another TPM, or it was cleared" in problems[2]
    assert run(bench.command(verb="status")) == 0
    assert capsys.readouterr().out.count("problem: ") == 2


def test_status_says_a_problem_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.command()) == 0
    capsys.readouterr()
    (bench.folder / "device.cert.pem").unlink()

    found = status(bench, capsys, "--verify")

    assert len(found["problems"]) == 1
    assert "device.cert.pem is missing" in found["problems"][0]
    assert found["serial"] is None
