"""The storage root key: made if absent, used as it is found, never replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AlgorithmUnsupportedError, AuthorizationError, HandleOccupiedError
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

STORAGE = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"


def occupy(tpm: SimulatedTpm, folder: Path, algorithm: str, attributes: str, *options: str) -> None:
    """Puts a primary key of tpm2-tools at the storage root key's handle."""
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", algorithm, "-a", attributes, "-c", "p.ctx", *options, cwd=folder)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000001", cwd=folder)
    tpm.flush()


def test_it_is_made_from_the_tcg_template(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        assert opened.srk.read() is None
        public = opened.srk.ensure()
        assert opened.srk.read() == public
    assert tpm.handles("persistent") == ["0x81000001"]

    # the same primary key as tpm2-tools make from that template: 32 zero bytes for each coordinate
    (tmp_path / "unique").write_bytes((b"\x20\x00" + bytes(128)) * 2)  # libtss2's structure as it lies in memory
    tpm.tool(
        *("tpm2_createprimary", "-C", "o", "-G", "ecc256:aes128cfb", "-a", STORAGE, "-u", "unique", "-c", "p.ctx"),
        cwd=tmp_path,
    )
    assert f"name: {public.name.hex()}" in tpm.tool("tpm2_readpublic", "-c", "p.ctx", cwd=tmp_path).stdout
    tpm.flush()


def test_it_stays_the_same_when_it_is_there(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        first = opened.srk.ensure()
    with open_tpm(tpm.tcti) as opened:
        assert opened.srk.ensure() == first


@pytest.mark.parametrize("algorithm", ["rsa2048:aes128cfb", "ecc384:aes128cfb"])
def test_another_storage_key_at_its_handle_is_used(tpm: SimulatedTpm, tmp_path: Path, algorithm: str) -> None:
    occupy(tpm, tmp_path, algorithm, STORAGE)
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256)
        assert opened.srk.ensure().algorithm == f"{algorithm[:3]}-{'2048' if algorithm[0] == 'r' else 'p384'}"
    with open_tpm(tpm.tcti) as opened:
        opened.load(SRK_HANDLE, key.public, key.private, None)


@pytest.mark.parametrize(
    ("algorithm", "attributes", "named"),
    [
        ("ecc256", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign", "ecc-p256 .*userWithAuth, sign"),
        ("ecc256:aes128cfb", STORAGE.replace("fixedtpm|fixedparent|", ""), "ecc-p256 .sensitiveDataOrigin"),
    ],
    ids=["signing key", "storage key that may leave the TPM"],
)
def test_what_is_no_storage_key_is_named_and_left(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: str, attributes: str, named: str
) -> None:
    occupy(tpm, tmp_path, algorithm, attributes)
    for use in ("read", "ensure"):
        with open_tpm(tpm.tcti) as opened, pytest.raises(HandleOccupiedError, match=named) as caught:
            getattr(opened.srk, use)()
        assert caught.value.handle == SRK_HANDLE
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleOccupiedError, match=named):
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    assert tpm.handles("persistent") == ["0x81000001"]


def test_whoever_makes_it_first_wins(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        assert opened.srk.read() is None
        occupy(tpm, tmp_path, "rsa2048:aes128cfb", STORAGE)
        assert opened.srk.ensure().algorithm == "rsa-2048"
        opened.srk.create_key(KeyAlgorithm.ECC_P256)


def test_and_if_that_is_no_storage_key_it_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        assert opened.srk.read() is None
        occupy(tpm, tmp_path, "ecc256", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
        with pytest.raises(HandleOccupiedError, match="occupied by something else"):
            opened.srk.ensure()


def test_the_owners_authorization_value_is_needed_to_make_it(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_changeauth", "-c", "owner", "secret")
    with open_tpm(tpm.tcti, owner_authorization=Secret(b"wrong")) as opened:
        with pytest.raises(AuthorizationError, match="cannot create a primary key: wrong") as caught:
            opened.srk.ensure()
        assert caught.value.hint == "give the right one: --owner-auth prompt, file:F, credential:NAME or sealed:F"
    with open_tpm(tpm.tcti) as opened, pytest.raises(AuthorizationError, match="cannot create a primary key"):
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    with open_tpm(tpm.tcti, owner_authorization=Secret(b"secret")) as opened:
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256)  # it is there now
        with pytest.raises(AuthorizationError, match="cannot make the key persistent") as caught:
            opened.persist(key, 0x81000100)
        assert "--owner-auth" in caught.value.hint
        with pytest.raises(AuthorizationError, match="cannot remove 0x81000001"):
            opened.remove_persistent(SRK_HANDLE)


def test_a_storage_root_key_may_have_an_authorization_value(tpm: SimulatedTpm, tmp_path: Path) -> None:
    occupy(tpm, tmp_path, "ecc256:aes128cfb", STORAGE, "-p", "secret")
    with open_tpm(tpm.tcti) as opened, pytest.raises(AuthorizationError, match="cannot create a key") as caught:
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    assert caught.value.hint == "give the right one: --srk-auth prompt, file:F or credential:NAME"
    with open_tpm(tpm.tcti, srk_authorization=Secret(b"secret")) as opened:
        with opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
            opened.load(SRK_HANDLE, key.public, key.private, None)
        software = ec.generate_private_key(ec.SECP256R1())
        assert opened.srk.import_key(software, KeyAlgorithm.ECC_P256).public.key_algorithm is KeyAlgorithm.ECC_P256


def test_a_key_that_the_tpm_refuses_is_refused_with_the_storage_root_key_known_or_not(
    tpm: SimulatedTpm, tmp_path: Path
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(0x191, 0x2C4)
    with open_tpm(proxy.tcti) as opened:
        opened.srk.ensure()
        with pytest.raises(AlgorithmUnsupportedError):
            opened.srk.create_key(KeyAlgorithm.RSA_3072)
    with open_tpm(proxy.tcti) as opened, pytest.raises(AlgorithmUnsupportedError):
        opened.srk.create_key(KeyAlgorithm.RSA_3072)


def test_it_is_looked_at_only_when_needed(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        opened.srk.ensure()
    assert trace.commands() == ["ReadPublic=0x18b", "CreatePrimary", "EvictControl", "FlushContext"]
    trace.restart()
    with open_tpm(trace.tcti) as opened:
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    assert trace.commands() == ["CreateLoaded", "FlushContext"]
    trace.restart()
    with open_tpm(trace.tcti) as opened:
        for _ in range(3):
            opened.srk.read()
    assert trace.commands() == ["ReadPublic"]


def test_known_to_be_absent_it_is_made_without_trying(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        assert opened.srk.read() is None
        opened.srk.create_key(KeyAlgorithm.ECC_P256)
    creation = ["CreatePrimary", "EvictControl", "FlushContext"]
    assert trace.commands() == ["ReadPublic=0x18b", *creation, "CreateLoaded", "FlushContext"]
