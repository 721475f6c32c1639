"""The service's start: what it refuses, and whom it believes."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.device_ca import DeviceCa, leaf
from tpm_mtls.errors import CertificateMismatchError, PemError, StorageError, UsageError
from tpm_mtls.identity import Identity
from tpm_mtls.tls.listener import bind
from tpm_mtls_server.logs import LOGGER, log, log_to_stderr
from tpm_mtls_server.service import _log_unforeseen, _url, crl_authorities, reserve_descriptors
from tpm_mtls_server.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.backend import BackendThread
    from support.https import HttpsClient

    Make = Callable[..., BackendThread]


def test_the_issuing_ca_may_come_from_the_servers_own_chain(
    make_backend: Make, ca: DeviceCa, device: Identity, connect: Callable[[int, Identity], HttpsClient]
) -> None:
    server = ca.server()
    backend = make_backend(identity=Identity(server.key, server.certificate, ca.root_only))
    assert connect(backend.port, device).get("/whoami").status == 200


def test_only_cas_below_an_anchor_may_sign_crls(ca: DeviceCa, tmp_path: Path) -> None:
    other = DeviceCa(tmp_path / "other", name="Other")
    device = leaf(ca.device())
    assert crl_authorities([ca.root], [device, ca.issuing]) == (ca.root, ca.issuing)
    assert crl_authorities([ca.root], [device, other.issuing]) == (ca.root,)
    assert crl_authorities([ca.root, ca.issuing], [device]) == (ca.root, ca.issuing)
    # the leaf itself is never one
    assert crl_authorities([ca.issuing], [device, ca.issuing]) == (ca.issuing,)


def test_a_forged_ca_of_the_same_name_is_not_believed(ca: DeviceCa, tmp_path: Path) -> None:
    forged = DeviceCa(tmp_path / "forged")
    assert crl_authorities([ca.root], [leaf(ca.device()), forged.issuing]) == (ca.root,)


def test_what_does_not_fit_together_is_refused_before_anything_is_opened(
    make_backend: Make, ca: DeviceCa, device: Identity, tmp_path: Path
) -> None:
    server = ca.server()
    with pytest.raises(CertificateMismatchError):
        make_backend(identity=Identity(server.key, device.certificate, ca.trust))
    with pytest.raises(StorageError, match="missing"):
        make_backend(identity=Identity(server.key, server.certificate, tmp_path / "missing"))
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(PemError):
        make_backend(identity=Identity(server.key, server.certificate, empty))
    assert not (tmp_path / "telemetry.db").exists()


def test_a_port_that_is_taken_is_refused_and_named(make_backend: Make, backend: BackendThread) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {backend.port}: address already in use"):
        make_backend(port=backend.port)


def test_an_ipv6_address_stands_in_brackets_in_the_url() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert _url("::1", listening) == f"https://[::1]:{port}"
        assert _url("backend.example", listening) == f"https://backend.example:{port}"


def test_tls_1_2_is_an_option(make_backend: Make, device: Identity) -> None:
    from support.https import device_context, tls_socket

    context = device_context(device)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls_socket(make_backend(tls12=True).port, context) as sock:
        assert sock.version() == "TLSv1.2"


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(restored_limit: tuple[int, int]) -> None:
    _, hard = restored_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    reserve_descriptors(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    reserve_descriptors(256)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (320, hard)
    with pytest.raises(UsageError, match=f"need {hard + 65} open files, and the limit is {hard}"):
        reserve_descriptors(hard + 1)


@pytest.fixture
def restored_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_accepting_goes_on_after_the_system_ran_out_of_descriptors(
    make_backend: Make,
    device: Identity,
    connect: Callable[[int, Identity], HttpsClient],
    logged: Callable[[str], list[dict[str, object]]],
    restored_limit: tuple[int, int],
) -> None:
    backend = make_backend()
    client = connect(backend.port, device)
    waiting = socket.create_connection(("127.0.0.1", backend.port), timeout=20)
    waiting.close()
    used = waiting_descriptor()
    pending = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, restored_limit[1]))
    with pending:
        pending.connect(("127.0.0.1", backend.port))
        assert client.get("/whoami").status == 200
        while not logged("cannot accept"):
            assert client.get("/whoami").status == 200
        resource.setrlimit(resource.RLIMIT_NOFILE, restored_limit)
    assert connect(backend.port, device).get("/whoami").status == 200


def waiting_descriptor() -> int:
    """The lowest free file descriptor."""
    with socket.socket() as sock:
        return sock.fileno()


# logs


def test_what_nobody_foresaw_is_logged_with_its_traceback(
    logged: Callable[[str], list[dict[str, object]]], caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_log_unforeseen)
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    (line,) = logged("internal error")
    assert "Exception in callback" in str(line["error"])
    assert "ZeroDivisionError" in caplog.text


def test_logs_are_one_json_object_per_line() -> None:
    program = (
        "import logging; from tpm_mtls_server.logs import log, log_to_stderr\n"
        "log_to_stderr(); logging.getLogger('other').info('not ours')\n"
        "log('event', device='a\\nb', nothing=None, number=1)\n"
        "try: 1/0\n"
        "except ZeroDivisionError as error: log('bad', level=logging.ERROR, exc_info=error)\n"
    )
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    first, second = [json.loads(line) for line in lines.splitlines()]
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "event": "event", "device": "a\nb", "number": 1}
    assert second["level"] == "error"
    assert "ZeroDivisionError" in second["exception"]


def test_logging_in_process_leaves_one_handler(capsys: pytest.CaptureFixture[str]) -> None:
    state = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    try:
        log_to_stderr()
        log_to_stderr()
        log("once")
    finally:
        LOGGER.handlers[:], LOGGER.propagate = state[0], state[2]
        LOGGER.setLevel(state[1] or logging.NOTSET)
    assert capsys.readouterr().err.count('"once"') == 1


def test_limits_have_defaults_below_the_usual_descriptor_limit() -> None:
    assert Limits().connections + 64 <= 1024
