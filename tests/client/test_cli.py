"""``tpm-mtls client get`` and ``post``: the body on stdout, everything else on stderr, the exit code says what."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.backend import running_backend
from support.device_ca import DeviceCa
from support.https_server import fixed, http
from support.terminal import shown_on_a_terminal
from support.tpm_keys import make_key
from tpm_mtls.cli import run
from tpm_mtls.identity import CERTIFICATE, TRUST, IdentityRecord, save_record

if TYPE_CHECKING:
    from pathlib import Path

    from support.certificates import TestCa
    from support.https_server import MakeServer
    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

Capture = pytest.CaptureFixture[str]


def options_of(identity: Identity) -> list[str]:
    return ["--cert", str(identity.certificate), "--key", str(identity.key), "--trust", str(identity.trust)]


@pytest.fixture
def options(device: Identity) -> list[str]:
    """The identity, as options."""
    return options_of(device)


def test_get_prints_the_body_as_it_is(serve: MakeServer, options: list[str], capsysbinary: Capture) -> None:
    server = serve(fixed(http(200, b"\x00\xffbinary")))
    assert run(["client", "get", server.url("/x"), *options]) == 0
    assert capsysbinary.readouterr() == (b"\x00\xffbinary", b"")
    assert server.requests[0].line == "GET /x HTTP/1.1"


def test_include_prints_status_and_header_fields_first(
    serve: MakeServer, options: list[str], capsysbinary: Capture
) -> None:
    assert run(["client", "get", serve(fixed(http(200, b"hello"))).url(), *options, "--include"]) == 0
    expected = b"HTTP 200\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    assert capsysbinary.readouterr() == (expected, b"")


def test_on_a_terminal_the_prompt_gets_a_line_of_its_own(serve: MakeServer, options: list[str]) -> None:
    get = [sys.executable, "-m", "tpm_mtls", "client", "get", serve(fixed(http(200, b'{"ok":true}'))).url(), *options]
    assert shown_on_a_terminal(get) == b'{"ok":true}\r\n'
    assert shown_on_a_terminal([*get, "--include"]).endswith(b'\r\n\r\r\n{"ok":true}\r\n')
    assert subprocess.run(get, capture_output=True, check=True).stdout == b'{"ok":true}'


def test_json_answers_with_one_object(serve: MakeServer, options: list[str], capsys: Capture) -> None:
    assert run(["client", "get", serve(fixed(http(200, b"hell\xc3\xb6"))).url(), *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["status"], answer["body"], answer["headers"]["Content-Length"]) == (200, "hellö", "6")


def test_json_carries_a_binary_body_as_base64(serve: MakeServer, options: list[str], capsys: Capture) -> None:
    assert run(["client", "get", serve(fixed(http(200, b"\xff\x00"))).url(), *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert base64.b64decode(answer["body_base64"]) == b"\xff\x00"
    assert "body" not in answer


def test_a_refusal_is_an_error_with_the_servers_words(serve: MakeServer, options: list[str], capsys: Capture) -> None:
    server = serve(fixed(http(403, b'{"error": "revoked\\u001b[31m"}', content_type="application/json")))
    assert run(["client", "get", server.url("/whoami"), *options]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tpm-mtls: error: {server.url('/whoami')} answers 403: revoked [31m\ntpm-mtls: hint: ")
    assert err.count("\n") == 2


def test_json_gives_a_refusal_to_the_script_too(serve: MakeServer, options: list[str], capsys: Capture) -> None:
    assert run(["client", "get", serve(fixed(http(404, b"nothing here"))).url(), *options, "--json"]) == 7
    out, err = capsys.readouterr()
    assert json.loads(out)["body"] == "nothing here"
    assert "answers 404: nothing here" in err


def test_post_sends_a_file(serve: MakeServer, options: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "data.bin").write_bytes(b"some data")
    server = serve()
    arguments = ["--data-file", str(tmp_path / "data.bin"), "--content-type", "text/plain"]
    assert run(["client", "post", server.url(), *options, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["body"] == "some data"
    assert server.requests[0].headers["content-type"] == "text/plain"


def test_post_sends_the_standard_input(
    serve: MakeServer, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"temperature": 21.5}')))
    server = serve()
    assert run(["client", "post", server.url(), *options, "--data-file", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["body"] == '{"temperature": 21.5}'
    assert server.requests[0].headers["content-type"] == "application/json"


def test_post_sends_no_more_than_it_may(
    options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    large = b"x" * (16 * 1024 * 1024 + 1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(large)))
    assert run(["client", "post", "https://localhost:1/", *options, "--data-file", "-"]) == 2
    (tmp_path / "large").write_bytes(large)
    assert run(["client", "post", "https://localhost:1/", *options, "--data-file", str(tmp_path / "large")]) == 5
    assert capsys.readouterr().err.count("16777216 bytes") == 2


def test_post_does_not_wait_for_a_terminal(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO()))
    assert run(["client", "post", "https://localhost:1/", *options, "--data-file", "-"]) == 2
    assert "nothing is piped into the standard input" in capsys.readouterr().err


def test_a_part_of_an_identity_is_refused(options: list[str], capsys: Capture) -> None:
    assert run(["client", "get", "https://localhost:1/", *options[:4]]) == 2
    assert "give --cert, --key and --trust" in capsys.readouterr().err


def test_a_device_that_is_not_enrolled_is_told_what_to_do(tmp_path: Path, capsys: Capture) -> None:
    assert run(["client", "get", "https://localhost:1/", "--state-dir", str(tmp_path)]) == 10
    assert "tpm-mtls keygen first-boot" in capsys.readouterr().err


def test_exit_codes_tell_the_classes_of_errors_apart(
    serve: MakeServer, ca: TestCa, options: list[str], capsys: Capture
) -> None:
    assert run(["client", "get", "http://localhost/", *options]) == 2
    assert run(["client", "get", "https://localhost:1/", *options]) == 6
    assert run(["client", "get", serve(identity=ca.software_identity("other.example")).url(), *options]) == 6
    assert run(["client", "get", serve(silent=True).url(), *options, "--timeout", "0.2"]) == 6
    assert run(["client", "get", serve().url(), *options, "--timeout", "0"]) == 2
    missing = [*options[:2], "--key", "missing.pem", *options[4:]]
    assert run(["client", "get", serve().url(), *missing]) == 8
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(("tpm-mtls: error: ", "tpm-mtls: hint: "))


def test_tls_1_2_is_allowed_on_request(serve: MakeServer, options: list[str], capsys: Capture) -> None:
    import ssl

    def old(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    server = serve(configure=old)
    assert run(["client", "get", server.url(), *options]) == 6
    assert "--tls12" in capsys.readouterr().err
    assert run(["client", "get", server.url(), *options, "--tls12"]) == 0


def test_the_identity_folder_is_used(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, state_dir: Path, serve: MakeServer
) -> None:
    """In a process of its own, as a user runs it, with the key in the TPM."""
    key = make_key(tpm, tmp_path, handle=0x81000100)
    state_dir.mkdir()
    (state_dir / CERTIFICATE).write_bytes(ca.certify(key.public_key, "device-1").read_bytes())
    (state_dir / TRUST).write_bytes(ca.trust.read_bytes())
    save_record(state_dir, _record(str(key.reference)))
    command = [sys.executable, "-W", "error", "-m", "tpm_mtls", "client", "get", serve().url("/whoami")]
    command += ["--state-dir", str(state_dir), "--tcti", tpm.tcti]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["device"] == "device-1"


def test_our_own_backend_answers(tmp_path: Path, capsys: Capture) -> None:
    ca = DeviceCa(tmp_path / "ca")
    device = ca.device("sensor-17")
    options = options_of(device)
    (tmp_path / "telemetry.json").write_text('{"temperature": 21.5}')
    (tmp_path / "broken.json").write_text("{")
    with running_backend(tmp_path, ca.server("localhost"), crl=ca.publish_crl()) as backend:
        assert run(["client", "get", f"{backend.url}/whoami", *options]) == 0
        assert json.loads(capsys.readouterr().out)["device"] == "sensor-17"
        data = ["--data-file", str(tmp_path / "telemetry.json")]
        assert run(["client", "post", f"{backend.url}/telemetry", *options, *data]) == 0
        data = ["--data-file", str(tmp_path / "broken.json")]
        assert run(["client", "post", f"{backend.url}/telemetry", *options, *data]) == 7
    assert "answers 400: " in capsys.readouterr().err


def test_an_authorization_value_comes_from_a_file(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer, capsys: Capture
) -> None:
    key = make_key(tpm, tmp_path, handle=0x81000100, authorization="open sesame")
    device = ca.identity(key.reference, key.public_key, "device-1")
    secret = tmp_path / "auth"
    secret.touch(mode=0o600)
    secret.write_text("open sesame\n")
    options = options_of(device)
    options += ["--tcti", tpm.tcti, "--auth"]
    assert run(["client", "get", serve().url(), *options, f"file:{secret}"]) == 0
    secret.write_text("shut\n")
    assert run(["client", "get", serve().url(), *options, f"file:{secret}"]) == 4
    assert run(["client", "get", serve().url(), *options, "open sesame"]) == 2
    assert "open sesame" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["get", "post", "check"])
def test_every_command_has_help_with_an_example(command: str, capsys: Capture) -> None:
    assert run(["client", command, "--help"]) == 0
    assert f"tpm-mtls client {command} " in capsys.readouterr().out.partition("Example:")[2]


def test_a_certificate_of_another_device_is_refused(
    ca: TestCa, device: Identity, serve: MakeServer, capsys: Capture
) -> None:
    other = replace(device, certificate=ca.software_identity("device-2").certificate)
    assert run(["client", "get", serve().url(), *options_of(other)]) == 5
    assert "does not belong to the key" in capsys.readouterr().err


def _record(key: str) -> IdentityRecord:
    return IdentityRecord(
        device="device-1",
        key=key,
        algorithm="ecc-p256",
        key_name="000b",
        srk_name="000b",
        tpm_vendor="IBM",
        tpm_firmware="1.0",
        reset_count=0,
        ca_url="https://ca.example/",
        enrolled_by="token",
    )
