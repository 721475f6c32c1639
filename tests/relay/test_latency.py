"""A simulated TPM, as slow as a chip."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tpm_mtls_relay
from support.relay import relay_layers
from support.tracing import Recorder
from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, simple_command
from tpm_mtls_relay.observers.latency import LatencyModel, Model, open_turns
from tpm_mtls_relay.observers.latency_file import SIZE_LIMIT, load_model, model_path, parse_model

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm
    from support.tracing import Exchanged

pytestmark = pytest.mark.usefixtures("runtime")

MODELS = sorted(path.stem for path in Path(tpm_mtls_relay.__file__).parent.joinpath("models").iterdir())
RANDOM = simple_command(0x17B, b"\0\x08")
SUCCESS = HEADER.pack(NO_SESSIONS, 10, 0)
SIGNING = "sign|userwithauth|sensitivedataorigin|fixedtpm|fixedparent"

TEXT = b"""
description = "a chip"
default = 5
hash = 10
sign.ecc-p256 = 60
sign.rsa-2048 = 150.5
[RSA_Decrypt]
rsa-2048 = 70
[ECC_Parameters]
default = 1
"""


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relays' locks are where nobody else looks."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def signature(kind: str) -> tuple[bytes, bytes]:
    """A Sign and its response, of a key of that kind."""
    body = {
        "ecc-p256": bytes.fromhex("0018000b") + 2 * (b"\0\x20" + bytes(32)),
        "ecc-p384": bytes.fromhex("0018000c") + 2 * (b"\0\x30" + bytes(48)),
        "rsa-2048": bytes.fromhex("0014000b") + b"\1\0" + bytes(256),
    }[kind]
    command = simple_command(0x15D, handles=(0x81000100,))
    return command, HEADER.pack(NO_SESSIONS, 10 + len(body), 0) + body


def test_a_model_has_times_by_command_and_by_kind_of_key() -> None:
    model = parse_model(TEXT, "chip.toml")
    assert model.seconds(RANDOM, SUCCESS) == 0.005
    assert model.seconds(simple_command(0x17D), SUCCESS) == 0.01
    assert model.seconds(*signature("ecc-p256")) == 0.06
    assert model.seconds(*signature("rsa-2048")) == 0.1505
    assert model.seconds(*signature("ecc-p384")) == 0.005
    assert model.seconds(simple_command(0x178, b"\0\3"), SUCCESS) == 0.001


def test_a_refusal_takes_the_default() -> None:
    command, _ = signature("ecc-p256")
    assert parse_model(TEXT, "chip.toml").seconds(command, HEADER.pack(NO_SESSIONS, 10, 0x99D)) == 0.005


def test_kinds_of_keys_are_told_from_real_commands(tpm: SimulatedTpm, tmp_path: Path) -> None:
    model = parse_model(
        b"default = 1\n[CreatePrimary]\nrsa-2048 = 2\necc-p256 = 3\n[Load]\necc-p384 = 4\n[RSA_Decrypt]\nrsa-2048 = 5",
        "chip.toml",
    )
    record = Recorder(tpm, tmp_path)
    (tmp_path / "data").write_bytes(b"hello")

    def slow(exchanged: Exchanged) -> set[float]:
        tpm.flush()
        return {model.seconds(*pair) for pair in exchanged} - {0.001}

    assert slow(record("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")) == {0.003}
    assert slow(record("tpm2_create", "-C", "p.ctx", "-G", "ecc384", "-u", "k.pub", "-r", "k.priv")) == set()
    assert slow(record("tpm2_load", "-C", "p.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")) == {0.004}
    attributes = "decrypt|userwithauth|sensitivedataorigin|fixedtpm|fixedparent"
    rsa = ("-G", "rsa2048:null:null", "-a", attributes)
    assert slow(record("tpm2_createprimary", "-C", "o", *rsa, "-c", "r.ctx")) == {0.002}
    assert slow(record("tpm2_rsaencrypt", "-c", "r.ctx", "-s", "oaep", "-o", "c", "data")) == set()
    assert slow(record("tpm2_rsadecrypt", "-c", "r.ctx", "-s", "oaep", "c")) == {0.005}


def test_the_answer_comes_when_the_chip_would_have_given_it() -> None:
    started = time.monotonic()
    assert LatencyModel(lambda _: SUCCESS, Model(0.05, {}))(RANDOM) == SUCCESS
    assert 0.05 <= time.monotonic() - started < 0.5


def test_a_tpm_that_is_slower_itself_is_not_made_slower_still() -> None:
    def slow(_: bytes) -> bytes:
        time.sleep(0.5)
        return SUCCESS

    started = time.monotonic()
    LatencyModel(slow, Model(0.49, {}))(RANDOM)
    assert time.monotonic() - started < 0.9


def test_the_relays_of_one_tpm_take_turns(tmp_path: Path) -> None:
    running: list[int] = []
    most = []

    def answer(_: bytes) -> bytes:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return SUCCESS

    def relay() -> None:
        layer = LatencyModel(answer, Model(0.01, {}), turns=open_turns("swtpm:port=2321", str(tmp_path)))
        for _ in range(3):
            layer(RANDOM)

    threads = [threading.Thread(target=relay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert open_turns("swtpm:port=2321", None) is None


def test_a_turn_ends_when_the_tpm_does_not_answer(tmp_path: Path) -> None:
    def broken(_: bytes) -> bytes:
        raise OptionError("no answer")

    for _ in range(2):
        layer = LatencyModel(broken, Model(0.01, {}), turns=open_turns("x" * 500, str(tmp_path)))
        with pytest.raises(OptionError, match="no answer"):
            layer(RANDOM)


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_models_are_models_with_a_source(name: str) -> None:
    assert "source = " in Path(model_path(name)).read_text()
    model = load_model(name)
    assert 0.001 < model.default < 0.1
    assert 0.02 < model.seconds(*signature("ecc-p256")) < 1
    assert model.seconds(*signature("rsa-2048")) >= model.seconds(*signature("ecc-p256"))
    assert model.seconds(*signature("ecc-p384")) > 0.02


def test_the_chip_of_the_budgets() -> None:
    model = load_model("chip")
    load, hash_, primary = (simple_command(code) for code in (0x157, 0x17D, 0x131))
    assert [model.seconds(command, SUCCESS) for command in (load, hash_, primary, RANDOM)] == [0.04, 0.01, 0.25, 0.005]
    assert model.seconds(*signature("ecc-p256")) == 0.06


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"Sign = 60", "has no default"),
        (b"default = 5\nSing = 60", "Sing is no command of the TPM"),
        (b"default = 5\nSign = 60\nsign = 61", "sign is there twice"),
        (b"default = 5\nSign.ecc = 60", "Sign: ecc is no kind of key"),
        (b"default = 5\nSign.ecc-p256 = '60'", "Sign: ecc-p256 is no number of milliseconds"),
        (b"default = 5\nSign = true", "Sign is no number of milliseconds"),
        (b"default = 5\nSign = -1", "Sign is no number of milliseconds"),
        (b"default = 5\nSign = nan", "Sign is no number of milliseconds"),
        (b"default = 5\nSign = 300001", "Sign is no number of milliseconds from 0 to 300000"),
        (b"default = {Sign = 5}", "default is no number of milliseconds"),
        (b"default = 5\nsource = 1", "source is no text"),
        (b"default: 5", "is no TOML"),
        (b"\xff", "is no TOML"),
        (b"#" * (SIZE_LIMIT + 1), "is larger than 65536 bytes"),
    ],
)
def test_what_is_no_model_is_refused_by_name(text: bytes, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_model(text, "chip.toml")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no latency model 'fast': name one of chip, .*, or a file"):
        load_model("fast")
    with pytest.raises(OptionError, match=r"cannot read the latency model .*/my.toml: no such file or directory"):
        load_model(str(tmp_path / "my.toml"))
    with pytest.raises(OptionError, match="is a directory"):
        load_model(f"{tmp_path}/")


def test_a_model_of_ones_own(tpm: SimulatedTpm, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("default = 0\nGetRandom = 50")
    with relay_layers(tpm, "--pass-through", "--latency-model", str(file)) as relay:
        started = time.monotonic()
        assert len(relay(RANDOM)) == 20
        assert time.monotonic() - started >= 0.05


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"default = 5\n{text}".encode()))
def test_any_bytes_are_a_model_or_refused(data: bytes) -> None:
    try:
        model = parse_model(data, "chip.toml")
    except OptionError:
        return
    assert model.default >= 0


def test_without_a_folder_for_the_lock_nobody_waits(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("tpm_mtls_relay.observers.latency.open_turns", refuse)
    with relay_layers(tpm, "--pass-through", "--latency-model", "chip") as relay:
        assert len(relay(RANDOM)) == 20
