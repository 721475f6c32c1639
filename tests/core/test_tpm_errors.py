"""Every way in which a TPM is missing or refuses ends in its own error, with a hint."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.tpm_proxy import TpmProxy
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    AuthorizationError,
    PolicyRefusedError,
    TctiInvalidError,
    TpmLockoutError,
    TpmMemoryError,
    TpmRefusedError,
    TpmUnavailableError,
    TpmVersionError,
)
from tpm_mtls.response_codes import tpm_error
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

DIGEST = bytes(32)
CREATE_LOADED, GET_CAPABILITY = 0x191, 0x17A


def ask(tcti: str) -> None:
    with open_tpm(tcti) as opened:
        opened.facts()


@pytest.mark.parametrize(
    ("tcti", "error", "message"),
    [
        ("nonsense:x", TctiInvalidError, "not a TCTI string: 'nonsense:x'"),
        ("swtpm:prt=2321", TctiInvalidError, "'swtpm:prt=2321' has a configuration that its transport"),
        ("swtpm:port=abc", TctiInvalidError, "has a configuration that its transport"),
        ("device:/dev/tpm99", TpmUnavailableError, "there is no TPM at /dev/tpm99"),
        ("device:/dev/null", TpmUnavailableError, "no TPM answers at device:/dev/null"),
        ("swtpm:host=127.0.0.1,port=1", TpmUnavailableError, "no TPM answers at swtpm:host=127.0.0.1,port=1"),
        ("cmd:false", TpmUnavailableError, "no TPM answers at cmd:false"),
    ],
)
def test_where_no_tpm_is_the_error_says_so(tcti: str, error: type[TpmUnavailableError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        ask(tcti)
    assert type(caught.value) is error
    assert caught.value.tcti == tcti
    assert caught.value.hint


def test_a_transport_that_is_not_installed_is_named() -> None:
    error = tpm_error(0xA0015, doing="-", tcti="pcap:tabrmd:bus_type=session")
    assert isinstance(error, TpmUnavailableError)
    assert "cannot use the transport of pcap:tabrmd:bus_type=session" in str(error)
    assert "libtss2-tcti-tabrmd" in error.hint


@pytest.mark.parametrize("rc", [0x70011, 0x80011, 0x80013, 0x90013])
def test_an_answer_that_is_no_tpms_is_no_tpm(rc: int) -> None:
    error = tpm_error(rc, doing="-", tcti="cmd:cat")
    assert isinstance(error, TpmUnavailableError)
    said = "what answers is no TPM" if rc & 0xFF == 17 else "the answer is shorter than a TPM's"
    assert str(error) == f"{said} at cmd:cat (response code {rc:#x})"
    assert error.hint == "does the TCTI string name a TPM 2.0, and nothing else?"


@contextmanager
def running_swtpm(folder: Path, *options: str) -> Iterator[str]:
    """A TPM that `Simulator` would never start: version 1.2, or not started up."""
    command = ["swtpm", "socket", "--daemon", "--tpmstate", f"dir={folder}", "--pid", f"file={folder / 'pid'}"]
    for port in random.sample(range(20000, 32000, 2), 20):
        ports = ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"]
        if subprocess.run([*command, *ports, *options], capture_output=True, timeout=20, check=False).returncode == 0:
            break
    else:
        pytest.fail("swtpm found no free port")
    try:
        yield f"swtpm:host=127.0.0.1,port={port}"
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


def test_a_tpm_1_2_is_refused_by_name(tmp_path: Path) -> None:
    with (
        running_swtpm(tmp_path, "--flags", "not-need-init,startup-clear") as tcti,
        pytest.raises(TpmVersionError, match=r"the TPM at swtpm:.* is a TPM 1\.2") as caught,
    ):
        ask(tcti)
    assert caught.value.hint == "a TPM 2.0 is needed; some firmware can switch"


def test_a_tpm_that_was_not_started_up_says_so(tmp_path: Path) -> None:
    with (
        running_swtpm(tmp_path, "--tpm2", "--flags", "not-need-init") as tcti,
        pytest.raises(TpmRefusedError, match="the TPM was not started up") as caught,
    ):
        ask(tcti)
    assert "tpm2_startup -c" in caught.value.hint


def test_a_tpm_in_failure_mode_says_so(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(GET_CAPABILITY, 0x101)
    with pytest.raises(TpmRefusedError, match=r"the TPM is in failure mode .*0x101") as caught:
        ask(proxy.tcti)
    assert "power the machine off and on again" in caught.value.hint


def test_exhausted_object_slots_are_told_and_nothing_is_left(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    taken = 0
    while tpm.tool("tpm2_createprimary", "-c", f"{taken}.ctx", check=False, cwd=tmp_path).returncode == 0:
        taken += 1
        assert taken < 20
    with open_tpm(tpm.tcti) as opened, pytest.raises(TpmMemoryError, match="object slots are exhausted") as caught:
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    assert caught.value.rc == 0x902
    assert "tpm2_flushcontext --transient-object" in caught.value.hint
    assert len(tpm.handles("transient")) == taken
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        opened.srk.create_key(KeyAlgorithm.ECC_P256)


def test_lockout_after_wrong_authorization_values_is_told(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "-n", "1", "-t", "1000", "-l", "1000")
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"right"))
        opened.persist(key, 0x81000100)
        wrong = opened.use_persistent(0x81000100, authorization=Secret(b"wrong"))
        with pytest.raises(AuthorizationError, match="cannot sign: wrong authorization value") as refused:
            opened.sign(wrong, DIGEST, hash_name="sha256")
        assert refused.value.hint == "give the right one: --auth prompt, file:F or credential:NAME"
        right = opened.use_persistent(0x81000100, authorization=Secret(b"right"))
        with pytest.raises(TpmLockoutError, match="dictionary-attack lockout") as caught:
            opened.sign(right, DIGEST, hash_name="sha256")
        assert caught.value.hint == (
            "find out who tries, or whether power was lost without a TPM shutdown, which counts as one; "
            "wait for its recovery time, or as its owner: tpm2_dictionarylockout --clear-lockout"
        )
        tpm.tool("tpm2_dictionarylockout", "--clear-lockout")
        opened.sign(right, DIGEST, hash_name="sha256")


def test_a_key_without_an_authorization_value_works_in_lockout(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "-n", "1", "-t", "1000", "-l", "1000")
    with open_tpm(tpm.tcti) as opened:
        guarded = opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"right"))
        opened.persist(guarded, 0x81000100)
        free = opened.srk.create_key(KeyAlgorithm.ECC_P256)
        wrong = opened.use_persistent(0x81000100, authorization=Secret(b"wrong"))
        for error in (AuthorizationError, TpmLockoutError):
            with pytest.raises(error):
                opened.sign(wrong, DIGEST, hash_name="sha256")
        opened.sign(free, DIGEST, hash_name="sha256")


def test_a_key_that_only_a_policy_can_use_says_so(tpm: SimulatedTpm, tmp_path: Path) -> None:
    (tmp_path / "policy").write_bytes(bytes(31) + b"\x01")
    tpm.tool(
        *("tpm2_createprimary", "-C", "o", "-G", "ecc256", "-L", "policy", "-c", "p.ctx"),
        *("-a", "fixedtpm|fixedparent|sensitivedataorigin|sign"),
        cwd=tmp_path,
    )
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000100", cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        key = opened.use_persistent(0x81000100)
        with pytest.raises(PolicyRefusedError, match="it takes no authorization value, only its policy"):
            opened.sign(key, DIGEST, hash_name="sha256")


@pytest.mark.parametrize("rc", [0x2C4, 0x2C7, 0x2A6, 0x2C1])
def test_what_a_small_tpm_answers_to_a_big_key_is_an_unsupported_algorithm(
    tpm: SimulatedTpm, tmp_path: Path, rc: int
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    proxy.answer(CREATE_LOADED, rc)
    with open_tpm(proxy.tcti) as opened, pytest.raises(AlgorithmUnsupportedError, match="cannot create a key"):
        opened.srk.create_key(KeyAlgorithm.RSA_3072)


def test_full_nv_memory_is_told(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    proxy.answer(0x120, 0x14B)
    with open_tpm(proxy.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256)
        with pytest.raises(TpmMemoryError, match=r"persistent at 0x81000100: .*NV memory is full"):
            opened.persist(key, 0x81000100)
