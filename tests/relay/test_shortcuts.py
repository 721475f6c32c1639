"""The shortcuts together: keys that are loaded twice, other programs' commands, and tpm2-tools through the relay."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.relay import relay_process
from support.shortcuts import TappedShortcuts, shortcuts_before
from support.tpm_commands import (
    RSASSA,
    SRK,
    DirectTpm,
    flush,
    get_capability,
    handle_in,
    handles_in,
    hash_command,
    load,
    parameters_in,
    read_public,
    sign,
    start_sequence,
)
from support.tpm_keys import make_key
from support.waiting import until
from tpm_mtls.relay import relay_tcti
from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.loaded.objects import Objects
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.responses import success
from tpm_mtls_relay.messages.wire import HEADER, code_of, simple_command
from tpm_mtls_relay.shortcuts.repeats import PATIENCE
from tpm_mtls_relay.shortcuts.virtual_handles import VirtualHandles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

RSA, EC = "rsa-2048-0", "ecc-p256-0"
DIGEST = hashlib.sha256(b"message").digest()
TRANSIENT = get_capability(1, 0x80000000, 254)


@pytest.fixture
def layers(tpm: SimulatedTpm, tmp_path: Path) -> Iterator[TappedShortcuts]:
    """Layers before a TPM with an RSA key file, which have looked for it among the persistent keys already."""
    make_key(tpm, tmp_path, "rsa-2048")
    with shortcuts_before(tpm) as made:
        made(flush(handle_in(made(load(tmp_path, RSA)))))
        made.layer.settle()
        made.sent.clear()
        yield made


def test_an_rsa_key_that_the_provider_loads_twice_is_loaded_once(layers: TappedShortcuts, tmp_path: Path) -> None:
    """As tpm2-openssl's decoders do it: for the EC decoder, which lets go of it, and for the RSA decoder."""
    parent = layers(read_public(SRK))
    first = layers(load(tmp_path, RSA))
    assert code_of(layers(flush(handle_in(first)))) == 0
    assert layers(read_public(SRK)) == parent
    assert layers(load(tmp_path, RSA)) == first
    assert layers.sent == ["READ_PUBLIC", "LOAD"]
    assert code_of(layers(sign(handle_in(first), DIGEST, RSASSA))) == 0
    assert layers.sent_for(flush(handle_in(first))) == ["FLUSH_CONTEXT"]


def test_in_between_digests_and_fixed_answers_do_no_harm(layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, RSA)))
    layers(hash_command(b""))
    layers(flush(handle))
    assert layers.layer.unsettled
    layers(get_capability(6, 0, 127))
    assert handle_in(layers(load(tmp_path, RSA))) == handle
    assert layers.sent == ["LOAD"]
    assert not layers.layer.unsettled


@pytest.mark.parametrize(
    "command", [TRANSIENT, read_public(SRK), simple_command(0x17B, b"\0\x08"), sign(0x80000001, DIGEST, RSASSA)]
)
def test_any_other_command_finds_the_key_unloaded(layers: TappedShortcuts, tmp_path: Path, command: bytes) -> None:
    handle = handle_in(layers(load(tmp_path, RSA)))
    layers(flush(handle))
    assert layers.sent_for(command)[0] == "FLUSH_CONTEXT"
    assert handles_in(layers(TRANSIENT)) == []
    assert layers.sent_for(load(tmp_path, RSA)) == ["LOAD"]


def test_when_no_command_comes_the_key_is_unloaded_all_the_same(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    layers(flush(handle_in(layers(load(tmp_path, RSA)))))
    assert len(tpm.handles("transient")) == 1
    layers.layer.settle()
    assert tpm.handles("transient") == []
    assert not layers.layer.unsettled
    assert layers.sent_for(load(tmp_path, RSA)) == ["LOAD"]


def test_the_program_unloads_it_when_it_hears_nothing(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path, "rsa-2048")
    with relay_process(tpm) as relay:
        handle = handle_in(relay(load(tmp_path, RSA)))
        assert code_of(relay(flush(handle))) == 0
        until(lambda: tpm.handles("transient") == [], "it kept the key")
        relay.process.kill()  # nothing can be done at its end
        relay.close()
    assert tpm.handles("transient") == []


def test_a_key_that_was_used_is_unloaded_at_once(layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, RSA)))
    layers(sign(handle, DIGEST, RSASSA))
    assert layers.sent_for(flush(handle)) == ["FLUSH_CONTEXT"]
    assert layers.sent_for(flush(handle)) == ["FLUSH_CONTEXT"]  # nothing is there: the TPM says so


def test_an_ec_key_is_loaded_once_and_unloaded_at_once(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    make_key(tpm, tmp_path)
    handle = handle_in(layers(load(tmp_path, EC.replace("-0", "-1"))))
    assert layers.sent_for(flush(handle)) == ["FLUSH_CONTEXT"]


def test_another_key_or_another_password_is_another_load(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    make_key(tpm, tmp_path, "rsa-2048")
    for other in (load(tmp_path, "rsa-2048-1"), load(tmp_path, RSA, password=b"wrong")):
        layers(flush(handle_in(layers(load(tmp_path, RSA)))))
        assert "FLUSH_CONTEXT" in layers.sent_for(other)
        assert layers.sent[-1] == "LOAD"


def test_the_parents_public_area_is_asked_for_again_after_a_second_or_another_command(layers: TappedShortcuts) -> None:
    assert layers.sent_for(read_public(SRK)) == ["READ_PUBLIC"]
    assert layers.sent_for(read_public(SRK)) == []
    layers.time += PATIENCE + 0.1
    assert layers.sent_for(read_public(SRK)) == ["READ_PUBLIC"]
    layers(simple_command(0x17B, b"\0\x08"))
    assert layers.sent_for(read_public(SRK)) == ["READ_PUBLIC"]
    layers(read_public(SRK + 1))
    assert layers.sent_for(read_public(SRK)) == ["READ_PUBLIC"]
    assert layers.sent_for(read_public(SRK + 1)) == ["READ_PUBLIC"]  # refusals are not kept


def test_virtual_handles_come_round_and_avoid_what_is_in_use() -> None:
    objects = Objects()
    handles = VirtualHandles(objects, first=0x80FF0000)
    kept = handles.new()
    objects.loaded.add(kept + 1)
    for _ in range(0x10000 - 2):
        handles.release(handles.new())
    assert handles.new() == kept + 2
    assert list(handles) == [kept, kept + 2]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["load", "flush", "sign", "list", "parent", "random", "quiet", "persistent"]), max_size=14)
)
def test_any_order_of_commands_is_answered_as_by_the_tpm_alone(
    tpm: SimulatedTpm, tmp_path: Path, program: list[str]
) -> None:
    """Response codes, Names and public areas, and how many objects there are: with one key that is persistent, too."""
    if not (tmp_path / f"{RSA}.pub").exists():
        make_key(tpm, tmp_path, "rsa-2048")
        tpm.tool("tpm2_load", "-C", f"{SRK:#x}", "-u", f"{RSA}.pub", "-r", f"{RSA}.priv", "-c", "k.ctx", cwd=tmp_path)
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "k.ctx", "0x81000100", cwd=tmp_path)
        tpm.flush()
        make_key(tpm, tmp_path, "rsa-2048")
    with shortcuts_before(tpm) as layers:
        through = _run(program, layers, tmp_path)
    direct = DirectTpm(tpm)
    assert through == _run(program, direct, tmp_path)
    tpm.flush()


def _run(program: list[str], exchange: TappedShortcuts | DirectTpm, folder: Path) -> list[object]:
    loaded: list[int] = []
    results: list[object] = []
    for number, step in enumerate(program):
        if step == "load" and len(loaded) < 2:  # the third slot is for persistent keys in use
            response = exchange(load(folder, f"rsa-2048-{number % 2}"))
            loaded.append(handle_in(response))
            results.append(parameters_in(response, handles=1).rest())
        elif step == "flush" and loaded:
            results.append(code_of(exchange(flush(loaded.pop()))))
        elif step == "sign" and loaded:
            results.append(exchange(sign(loaded[-1], DIGEST, RSASSA)))  # without a salt: always the same
        elif step == "list":
            results.append(len(handles_in(exchange(TRANSIENT))))
        elif step in {"parent", "persistent"}:
            results.append(exchange(read_public(SRK if step == "parent" else 0x81000100)))
        elif step == "random":
            results.append(code_of(exchange(simple_command(0x17B, b"\0\x08"))))
        elif step == "quiet" and isinstance(exchange, TappedShortcuts):
            exchange.layer.settle()
    return results


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(code for code in vars(commands).values() if isinstance(code, int))),
    st.sampled_from([0x8001, 0x8002]),
    st.binary(max_size=40),
)
def test_malformed_commands_get_the_tpms_answer_or_the_relays_error(
    layers: TappedShortcuts, tmp_path: Path, code: int, tag: int, rest: bytes
) -> None:
    if code in {commands.STARTUP, commands.EVICT_CONTROL}:
        return
    layers(load(tmp_path, RSA))
    command = HEADER.pack(tag, HEADER.size + len(rest), code) + rest
    with contextlib.suppress(RelayError):
        response = layers(command)
        assert HEADER.unpack_from(response)[1] == len(response)
    layers.tracking.close()


def test_tools_hash_with_a_ticket_and_sign_with_a_restricted_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    tcti = ("-T", relay_tcti(tpm.tcti))
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
    kind = ("-G", "ecc256:ecdsa-sha256:null", "-a", attributes)
    (tmp_path / "message").write_bytes(b"message" * 1000)

    def tool(*command: str) -> str:
        return tpm.tool(command[0], *tcti, *command[1:], cwd=tmp_path).stdout

    tool("tpm2_create", "-C", f"{SRK:#x}", *kind, "-u", "ak.pub", "-r", "ak.priv", "-c", "ak.ctx")
    tool("tpm2_hash", "-C", "o", "-g", "sha256", "-t", "ticket", "-o", "digest", "message")
    assert (tmp_path / "digest").read_bytes() == hashlib.sha256(b"message" * 1000).digest()
    tool("tpm2_sign", "-c", "ak.ctx", "-g", "sha256", "-s", "ecdsa", "-d", "-t", "ticket", "-o", "signature", "digest")
    tool("tpm2_sign", "-c", "ak.ctx", "-g", "sha256", "-s", "ecdsa", "-o", "signature", "message")
    tool("tpm2_verifysignature", "-c", "ak.ctx", "-g", "sha256", "-m", "message", "-s", "signature")
    tool("tpm2_load", "-C", f"{SRK:#x}", "-u", f"{EC}.pub", "-r", f"{EC}.priv", "-c", "key.ctx")
    tool("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", "0x81000100")
    tool("tpm2_load", "-C", f"{SRK:#x}", "-u", f"{EC}.pub", "-r", f"{EC}.priv", "-c", "again.ctx")
    for key in ("again.ctx", "0x81000100"):
        tool("tpm2_sign", "-c", key, "-g", "sha256", "-o", "signature", "message")
        tool("tpm2_verifysignature", "-c", key, "-g", "sha256", "-m", "message", "-s", "signature")
    assert tool("tpm2_getcap", "handles-persistent").split() == ["-", hex(SRK), "-", "0x81000100"]
    assert tool("tpm2_getcap", "properties-variable")
    assert tool("tpm2_getcap", "handles-transient") == ""
    tpm.flush()


def test_a_success_that_is_cut_off_is_the_programs_to_judge(layers: TappedShortcuts, tmp_path: Path) -> None:
    for code, command in ((commands.LOAD, load(tmp_path, RSA)), (commands.GET_CAPABILITY, TRANSIENT)):
        layers(start_sequence())
        layers.lies[code] = success()
        assert layers(command) == success()
