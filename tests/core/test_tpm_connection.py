"""Commands to a TPM: facts, handles, keys, signatures; nothing is left loaded, whatever happens."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from support.tpm_proxy import TpmProxy
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    AuthorizationError,
    ForeignKeyError,
    HandleNotFoundError,
    HandleOccupiedError,
    PemError,
    TpmMemoryError,
    TpmRefusedError,
    TpmUnavailableError,
)
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls.tpm.templates import signing_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

CREATE_LOADED, FLUSH_CONTEXT, LOAD = 0x191, 0x165, 0x157
DIGESTS = {"sha256": hashlib.sha256(b"hello").digest(), "sha384": hashlib.sha384(b"hello").digest()}


def read_public(tpm: SimulatedTpm, handle: str) -> dict[str, str]:
    """tpm2_readpublic's view of a handle: name, attributes."""
    text = tpm.tool("tpm2_readpublic", "-c", handle).stdout
    lines = [line.strip() for line in text.splitlines()]
    return {
        "name": next(line.removeprefix("name: ") for line in lines if line.startswith("name: ")),
        "attributes": next(line.removeprefix("value: ") for line in lines if line.startswith("value: fixedtpm")),
    }


def make_keys(tcti: str, number: int, *, then: BaseException | None = None) -> None:
    with open_tpm(tcti) as opened:
        for _ in range(number):
            opened.srk.create_key(KeyAlgorithm.ECC_P256)
        if then is not None:
            raise then


def test_facts_are_what_tpm2_tools_say(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        facts = opened.facts()

    properties = tpm.tool("tpm2_getcap", "properties-fixed").stdout
    assert 'value: "IBM"' in properties
    assert facts.vendor == "IBM"
    versions = [int(raw, 16) for raw in re.findall(r"FIRMWARE_VERSION_[12]:\n +raw: (0x[0-9A-Fa-f]+)", properties)]
    assert facts.firmware == ".".join(f"{version >> 16}.{version & 0xFFFF}" for version in versions)
    assert f"reset_count: {facts.reset_count}" in tpm.tool("tpm2_readclock").stdout


def test_the_reset_count_grows_with_a_restart(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        before = opened.facts().reset_count
    tpm.restart()
    with open_tpm(tpm.tcti) as opened:
        assert opened.facts().reset_count == before + 1


def test_a_new_tpm_has_no_persistent_handle(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        assert opened.persistent_handles() == ()


def test_persistent_handles_are_all_listed(make_tpm: Callable[..., SimulatedTpm]) -> None:
    tpm = make_tpm(ek_certificates=True)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
        assert opened.persistent_handles() == (0x81000001, 0x81010001, 0x81010016)
    assert tpm.handles("persistent") == ["0x81000001", "0x81010001", "0x81010016"]


def test_the_tcti_may_come_from_the_environment(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    with open_tpm() as opened:
        assert opened.tcti == tpm.tcti


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_key_of_each_algorithm_signs_and_cryptography_verifies(tpm: SimulatedTpm, algorithm: KeyAlgorithm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(algorithm)
        signature = opened.sign(key, DIGESTS[algorithm.signature_hash], hash_name=algorithm.signature_hash)

    assert key.public.key_algorithm is algorithm
    assert key.public.attribute_words == (
        *("fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA", "sign"),
    )
    assert key.public.spki is not None
    public = load_der_public_key(key.public.spki)
    chosen = hashes.SHA384() if algorithm is KeyAlgorithm.ECC_P384 else hashes.SHA256()
    digest = DIGESTS[algorithm.signature_hash]
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, digest, ec.ECDSA(Prehashed(chosen)))
    else:
        assert isinstance(public, rsa.RSAPublicKey)
        public.verify(signature, digest, padding.PKCS1v15(), Prehashed(chosen))


def test_what_the_tpm_does_not_have_is_an_unsupported_algorithm(tpm: SimulatedTpm) -> None:
    template = bytearray(signing_template(KeyAlgorithm.RSA_2048, with_authorization=False))
    place = template.index((2048).to_bytes(2, "big"))
    template[place : place + 2] = (4096).to_bytes(2, "big")
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
        with pytest.raises(AlgorithmUnsupportedError, match="cannot create a key: this TPM does not support") as caught:
            opened.create_child(SRK_HANDLE, bytes(template), None)
    assert caught.value.hint == "for a new key use ecc-p256; where it is about PCRs see tpm-mtls pcr diff"


def test_a_tpm_without_create_loaded_makes_keys_with_create_and_load(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(CREATE_LOADED, 0x143)
    with open_tpm(proxy.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"abc"))
        assert opened.sign(key, DIGESTS["sha256"], hash_name="sha256")
        assert len(tpm.handles("transient")) == 1


def test_a_key_has_its_authorization_value(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"right"))
        assert "noDA" not in key.public.attribute_words
        opened.persist(key, 0x81000100)
        assert opened.sign(key, DIGESTS["sha256"], hash_name="sha256")
        again = opened.use_persistent(0x81000100, authorization=Secret(b"right"))
        assert opened.sign(again, DIGESTS["sha256"], hash_name="sha256")
        wrong = opened.use_persistent(0x81000100, authorization=Secret(b"wrong"))
        with pytest.raises(AuthorizationError, match=r"cannot sign: wrong authorization value .*lockout.*0x98e"):
            opened.sign(wrong, DIGESTS["sha256"], hash_name="sha256")


def test_a_key_is_made_persistent_and_removed(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256)
        opened.persist(key, 0x81000123)
        found = opened.read_public(0x81000123)
        assert found.public == key.public
        assert found.handle == 0x81000123
        outside = read_public(tpm, "0x81000123")
        assert outside["name"] == key.public.name.hex()
        assert outside["attributes"] == "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
        opened.remove_persistent(0x81000123)
        with pytest.raises(HandleNotFoundError, match="cannot remove 0x81000123: the TPM has nothing at that handle"):
            opened.remove_persistent(0x81000123)
        with pytest.raises(HandleNotFoundError, match="cannot read what is at 0x81000123"):
            opened.read_public(0x81000123)


def test_an_occupied_handle_is_named_and_stays(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        first, second = (opened.srk.create_key(KeyAlgorithm.ECC_P256) for _ in range(2))
        opened.persist(first, 0x81000100)
        with pytest.raises(
            HandleOccupiedError, match=r"0x81000100 is occupied by ecc-p256 .*noDA, sign.*Name"
        ) as caught:
            opened.persist(second, 0x81000100)
        assert caught.value.handle == 0x81000100
        assert first.public.name.hex() in str(caught.value)
        assert opened.read_public(0x81000100).public == first.public


def test_a_key_is_loaded_again_by_the_tpm_that_made_it_only(
    tpm: SimulatedTpm, make_tpm: Callable[..., SimulatedTpm]
) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256)
    with open_tpm(tpm.tcti) as opened:
        again = opened.load(SRK_HANDLE, key.public, key.private, None)
        assert opened.sign(again, DIGESTS["sha256"], hash_name="sha256")

    other = make_tpm()
    with open_tpm(other.tcti) as opened:
        with pytest.raises(ForeignKeyError, match="its parent 0x81000001 is not in this TPM"):
            opened.load(SRK_HANDLE, key.public, key.private, None)
        opened.srk.ensure()
        with pytest.raises(ForeignKeyError, match="belongs to another TPM, or this TPM was cleared"):
            opened.load(SRK_HANDLE, key.public, key.private, None)


def test_a_damaged_key_is_refused(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        with opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
            pass
        with pytest.raises(PemError, match=r"cannot load the key: .*parameter 1.*: the key is damaged"):
            opened.load(SRK_HANDLE, key.public, key.private[:20], None)
        flipped = bytes([*key.private[:-1], key.private[-1] ^ 1])
        with pytest.raises(ForeignKeyError, match="TPM_RC_INTEGRITY"):
            opened.load(SRK_HANDLE, key.public, flipped, None)


def test_any_other_refusal_to_load_stays_what_it_is(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(LOAD, 0x902)
    with open_tpm(proxy.tcti) as opened:
        with opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
            pass
        with pytest.raises(TpmMemoryError, match="cannot load the key"):
            opened.load(SRK_HANDLE, key.public, key.private, None)


def test_keys_are_flushed_at_the_end_of_their_own_block_or_of_the_tpms(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        with opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
            assert len(tpm.handles("transient")) == 1
        assert tpm.handles("transient") == []
        opened.flush(key)
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
        assert len(tpm.handles("transient")) == 1
    assert tpm.handles("transient") == []


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_keys_are_flushed_when_the_block_fails(tpm: SimulatedTpm, error: BaseException) -> None:
    def fail() -> None:
        with open_tpm(tpm.tcti) as opened:
            opened.srk.create_key(KeyAlgorithm.ECC_P256)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert tpm.handles("transient") == []


def test_an_interrupt_while_the_tpm_works_waits_until_the_key_is_known(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    proxy.signal_after(CREATE_LOADED, signal.SIGINT)
    with open_tpm(proxy.tcti) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.srk.create_key(KeyAlgorithm.ECC_P256)
        assert len(tpm.handles("transient")) == 1
    assert tpm.handles("transient") == []


def test_an_interrupt_while_flushing_waits_until_all_is_flushed(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    proxy.signal_after(FLUSH_CONTEXT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make_keys(proxy.tcti, 2)
    assert tpm.handles("transient") == []


def test_a_flush_that_fails_is_told_but_not_instead_of_an_earlier_error(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    proxy.answer(FLUSH_CONTEXT, 0x101)
    with pytest.raises(TpmRefusedError, match="cannot flush a key: the TPM is in failure mode"):
        make_keys(proxy.tcti, 1)
    with pytest.raises(ValueError, match="boom"):
        make_keys(proxy.tcti, 1, then=ValueError("boom"))
    tpm.flush()


def test_a_tpm_that_goes_away_is_unavailable(tpm: SimulatedTpm) -> None:
    def use_it_until_it_goes() -> None:
        with open_tpm(tpm.tcti) as opened:
            opened.srk.create_key(KeyAlgorithm.ECC_P256)
            tpm.stop()
            opened.facts()

    with pytest.raises(TpmUnavailableError, match="no TPM answers"):
        use_it_until_it_goes()


def test_libtss2_itself_says_nothing_on_stderr(tpm: SimulatedTpm, capfd: pytest.CaptureFixture[str]) -> None:
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleNotFoundError):
        opened.read_public(0x81000100)
    assert capfd.readouterr().err == ""


def test_what_the_user_set_for_libtss2s_log_stays() -> None:
    script = "import os, tpm_mtls.tpm; print(os.environ['TSS2_LOG'])"
    environment = os.environ | {"TSS2_LOG": "all+ERROR"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "all+ERROR\n"


def test_in_another_thread_nothing_waits_for_an_interrupt(tpm: SimulatedTpm) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(make_keys, tpm.tcti, 1).result()
    assert tpm.handles("transient") == []
