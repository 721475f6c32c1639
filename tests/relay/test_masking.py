"""No secret of any command is in the trace or in the capture: real programs, real secrets."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from support.tpm_commands import DirectTpm, sized, with_password
from support.tracing import Recorder, pairs
from tpm_mtls_relay.messages.command_names import COMMAND_NAMES
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, simple_command
from tpm_mtls_relay.observers.capture import Capture
from tpm_mtls_relay.observers.masking import masked_command, masked_response
from tpm_mtls_relay.observers.reporter import Reporter

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from support.tracing import Exchanged

PARENT, CHILD, NEW, INDEX, HIERARCHY = (f"auth-value-{number}-of-ours" for number in range(5))
SEALED, STORED, MACED, HASHED = (f"content-{number}-of-ours".encode() for number in range(4))
ATTRIBUTES = "ownerwrite|ownerread|authread|authwrite"


def spelled(secret: bytes) -> list[bytes]:
    """The secret as it is, in hexadecimal, and in base64."""
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret).rstrip(b"=")[:-1]]


def shown(exchanged: Exchanged, folder: Path) -> bytes:
    """All that the trace and the capture hold of it."""
    trace, capture = folder / "trace.jsonl", folder / "trace.pcapng"
    listeners = [Reporter(str(trace), 1, "program"), Capture(str(capture), 1)]
    for command, response in exchanged:
        for listener in listeners:
            listener(command, response, 1.0, 0.1)
    assert len(trace.read_bytes().splitlines()) == len(exchanged)
    assert [tuple(map(len, pair)) for pair in pairs(capture.read_bytes())] == [
        tuple(map(len, pair)) for pair in exchanged
    ]
    return trace.read_bytes() + capture.read_bytes()


def assert_hidden(secrets: list[bytes], exchanged: Exchanged, folder: Path) -> None:
    """Each of ``secrets`` was sent or answered, and none is shown."""
    everything = b"".join(command + response for command, response in exchanged)
    said = shown(exchanged, folder)
    for secret in secrets:
        assert secret in everything, secret
        for spelling in spelled(secret):
            assert spelling not in said, secret


def test_secrets_of_objects(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "sealed").write_bytes(SEALED)
    exchanged = record("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx", "-p", PARENT)
    exchanged += record(
        *("tpm2_create", "-C", "p.ctx", "-P", PARENT, "-i", "sealed", "-p", CHILD, "-u", "s.pub", "-r", "s.priv")
    )
    tpm.flush()
    exchanged += record("tpm2_load", "-C", "p.ctx", "-P", PARENT, "-u", "s.pub", "-r", "s.priv", "-c", "s.ctx")
    tpm.flush()
    exchanged += record("tpm2_unseal", "-c", "s.ctx", "-p", CHILD)
    tpm.flush()
    exchanged += record("tpm2_changeauth", "-C", "p.ctx", "-c", "s.ctx", "-p", CHILD, "-r", "new.priv", NEW)
    tpm.flush()
    exchanged += record("tpm2_changeauth", "-c", "o", HIERARCHY)
    secrets = [PARENT, CHILD, NEW, HIERARCHY]
    assert_hidden([*map(str.encode, secrets), SEALED], exchanged, tmp_path)


def test_secrets_of_indexes(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "stored").write_bytes(STORED)
    size = str(len(STORED))
    exchanged = record("tpm2_nvdefine", "0x1500001", "-C", "o", "-s", size, "-a", ATTRIBUTES, "-p", INDEX)
    exchanged += record("tpm2_nvwrite", "0x1500001", "-C", "o", "-i", "stored")
    exchanged += record("tpm2_nvread", "0x1500001", "-P", INDEX)
    assert_hidden([INDEX.encode(), STORED], exchanged, tmp_path)


def test_passwords_in_the_authorization_area(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """As the provider and the ESAPI send them, in the clear."""
    record = Recorder(tpm, tmp_path)
    record("tpm2_nvdefine", "0x1500001", "-C", "o", "-s", "8", "-a", ATTRIBUTES, "-p", INDEX)
    command = with_password(
        0x137, sized(b"12345678") + b"\0\0", handles=(0x01500001, 0x01500001), password=INDEX.encode()
    )
    response = DirectTpm(tpm)(command)
    assert_hidden([INDEX.encode(), b"12345678"], [(command, response)], tmp_path)


def test_keys_and_data_of_hmacs_and_ciphers(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "maced").write_bytes(MACED)
    record("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    exchanged = record("tpm2_create", "-C", "p.ctx", "-G", "hmac", "-c", "h.ctx", "-p", CHILD)
    tpm.flush()
    exchanged += record("tpm2_hmac", "-c", "h.ctx", "-p", CHILD, "-o", "mac", "maced")
    tpm.flush()
    (tmp_path / "key").write_bytes(b"16 bytes of ours")
    exchanged += record("tpm2_loadexternal", "-C", "n", "-G", "aes", "-r", "key", "-c", "e.ctx", "-p", NEW)
    exchanged += record("tpm2_encryptdecrypt", "-c", "e.ctx", "-p", NEW, "-o", "cipher", "maced")
    tpm.flush()
    secrets = [CHILD.encode(), NEW.encode(), MACED, b"16 bytes of ours", (tmp_path / "mac").read_bytes()]
    assert_hidden(secrets, exchanged, tmp_path)


def test_random_numbers_and_what_is_hashed_or_encrypted(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    (tmp_path / "hashed").write_bytes(HASHED)
    exchanged = record("tpm2_getrandom", "-o", "random", "32")
    exchanged += record("tpm2_hash", "-C", "o", "-g", "sha256", "-o", "digest", "hashed")
    record(
        "tpm2_createprimary",
        "-C",
        "o",
        "-G",
        "rsa2048:null:null",
        "-a",
        "decrypt|userwithauth|sensitivedataorigin|fixedtpm|fixedparent",
        "-c",
        "r.ctx",
    )
    tpm.flush()
    exchanged += record("tpm2_rsaencrypt", "-c", "r.ctx", "-s", "oaep", "-o", "cipher", "hashed")
    tpm.flush()
    exchanged += record("tpm2_rsadecrypt", "-c", "r.ctx", "-s", "oaep", "-o", "plain", "cipher")
    tpm.flush()
    assert_hidden([HASHED, (tmp_path / "random").read_bytes()], exchanged, tmp_path)


def test_the_secret_that_activates_a_credential(tpm: SimulatedTpm, tmp_path: Path) -> None:
    record = Recorder(tpm, tmp_path)
    secret = b"activation-secret-32-bytes-long!"
    (tmp_path / "secret").write_bytes(secret)
    record("tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
    tpm.flush()
    record("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-n", "ak.name")
    tpm.flush()
    name = (tmp_path / "ak.name").read_bytes().hex()
    exchanged = record("tpm2_makecredential", "-e", "ek.pub", "-s", "secret", "-n", name, "-o", "blob")
    tpm.flush()
    record("tpm2_startauthsession", "--policy-session", "-S", "s.ctx")
    record("tpm2_policysecret", "-S", "s.ctx", "-c", "e")
    exchanged += record(
        *("tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "blob", "-o", "out", "-P", "session:s.ctx")
    )
    record("tpm2_flushcontext", "s.ctx")
    tpm.flush()
    assert_hidden([secret], exchanged, tmp_path)


def test_a_command_that_is_not_known_is_masked_as_a_whole() -> None:
    vendor = HEADER.pack(NO_SESSIONS, 16, 0x20000001) + b"secret"
    assert masked_command(vendor) == vendor[:10] + bytes(6)
    assert masked_response(vendor, HEADER.pack(NO_SESSIONS, 16, 0) + b"secret")[10:] == bytes(6)


def test_so_is_one_that_is_not_what_it_says() -> None:
    area = HEADER.pack(SESSIONS, 26, 0x15E) + bytes.fromhex("80000000 00000ff0") + b"password"
    assert masked_command(area)[10:] == bytes(16)
    short = HEADER.pack(NO_SESSIONS, 16, 0x15E) + bytes.fromhex("8000 0000 0000")
    answer = HEADER.pack(NO_SESSIONS, 18, 0) + b"\x0f\xffsecret"
    assert masked_response(short, answer)[10:] == bytes(8)


def test_a_refusal_is_shown_as_it_is() -> None:
    assert masked_response(simple_command(0x17B, b"\0\x08"), HEADER.pack(NO_SESSIONS, 10, 0x922)) == HEADER.pack(
        NO_SESSIONS, 10, 0x922
    )


@given(code=st.sampled_from(sorted(COMMAND_NAMES)), rest=st.binary(max_size=100), sessions=st.booleans())
@settings(max_examples=1000)
def test_any_bytes_are_masked_without_a_change_of_size(code: int, rest: bytes, sessions: bool) -> None:  # noqa: FBT001 - given by name
    message = HEADER.pack(SESSIONS if sessions else NO_SESSIONS, 10 + len(rest), code) + rest
    assert len(masked_command(message)) == len(message)
    assert masked_command(message)[:10] == message[:10]
    response = HEADER.pack(SESSIONS if sessions else NO_SESSIONS, 10 + len(rest), 0) + rest
    assert len(masked_response(message, response)) == len(response)
