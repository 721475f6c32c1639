"""TPM2_ECDH_KeyGen and TPM2_ECDH_ZGen; OpenSSL and tpm2-tools agree with the TPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import CredentialError, HandleNotFoundError, StorageRootKeyChangedError, TpmRefusedError
from tpm_mtls.structures import Attribute, KeyAlgorithm
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.tpm import LoadedKey, Tpm

_ECDH_ZGEN, _ECDH_KEYGEN = 0x154, 0x163
_CURVES = {KeyAlgorithm.ECC_P256: ec.SECP256R1(), KeyAlgorithm.ECC_P384: ec.SECP384R1()}


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def public_key(key: LoadedKey) -> ec.EllipticCurvePublicKey:
    found = load_der_public_key(key.public.spki or b"")
    assert isinstance(found, ec.EllipticCurvePublicKey)
    return found


def agree(tpm: Tpm) -> None:
    key = tpm.key_agreement.create_key()
    tpm.key_agreement.finish(key, tpm.key_agreement.begin(key).share)


@pytest.fixture
def with_srk(tpm: SimulatedTpm) -> SimulatedTpm:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    return tpm


@pytest.mark.parametrize("algorithm", _CURVES)
def test_the_tpm_agrees_with_itself_and_with_openssl(with_srk: SimulatedTpm, algorithm: KeyAlgorithm) -> None:
    with open_tpm(with_srk.tcti) as tpm, tpm.key_agreement.create_key(algorithm) as key:
        begun = tpm.key_agreement.begin(key)
        assert tpm.key_agreement.finish(key, begun.share) == begun.secret
        assert tpm.key_agreement.begin(key).secret != begun.secret
        for _ in range(3):
            other = ec.generate_private_key(_CURVES[algorithm])
            secret = other.exchange(ec.ECDH(), public_key(key))
            assert tpm.key_agreement.finish(key, point_of(other)).value == secret


def test_the_key_agrees_and_does_nothing_else(with_srk: SimulatedTpm) -> None:
    with open_tpm(with_srk.tcti) as tpm, tpm.key_agreement.create_key() as key:
        assert key.public.was_born_inside
        assert Attribute.DECRYPT in key.public.attributes
        assert not key.public.attributes & (Attribute.SIGN | Attribute.RESTRICTED)
        with pytest.raises(TpmRefusedError, match="cannot sign"):
            tpm.sign(key, bytes(32), hash_name="sha256")
        with tpm.srk.create_key(KeyAlgorithm.ECC_P256) as signs, pytest.raises(TpmRefusedError, match="cannot agree"):
            tpm.key_agreement.finish(signs, tpm.key_agreement.begin(key).share)


def test_tpm2_ecdhzgen_computes_the_same_secret(with_srk: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(with_srk.tcti) as tpm:
        key = tpm.key_agreement.create_key()
        begun = tpm.key_agreement.begin(key)
    for name, data in (("key.pub", key.public.data), ("key.priv", key.private)):
        (tmp_path / name).write_bytes(len(data).to_bytes(2, "big") + data)
    coordinates = (begun.share[1:33], begun.share[33:])
    (tmp_path / "share").write_bytes(_sized(b"".join(_sized(each) for each in coordinates)))

    with_srk.tool("tpm2_load", "-C", "0x81000001", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx", cwd=tmp_path)
    flush(with_srk)
    with_srk.tool("tpm2_ecdhzgen", "-c", "key.ctx", "-u", "share", "-o", "secret", cwd=tmp_path)
    flush(with_srk)
    assert begun.secret.value in (tmp_path / "secret").read_bytes()


def flush(tpm: SimulatedTpm) -> None:
    """Without a resource manager, what tpm2-tools leave stays."""
    tpm.flush()
    tpm.tool("tpm2_flushcontext", "--loaded-session")


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "share",
    [
        b"",
        bytes(65),
        b"\x04" + bytes(64),
        b"\x04" + b"\x01" * 32 + b"\x02" * 32,
        b"\x02" + b"\x01" * 32,
        b"\x04" + b"\x01" * 96,
    ],
    ids=["empty", "infinity", "zeros", "off the curve", "compressed", "of P-384"],
)
def test_what_is_no_point_of_the_curve_is_refused(with_srk: SimulatedTpm, share: bytes) -> None:
    with open_tpm(with_srk.tcti) as tpm, tpm.key_agreement.create_key() as key:
        with pytest.raises(CredentialError, match="no point of the key's curve"):
            tpm.key_agreement.finish(key, share)
        assert with_srk.handles("loaded-session") == []


def test_no_secret_crosses_the_bus_in_the_clear(
    with_srk: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(with_srk, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as tpm, tpm.key_agreement.create_key() as key:
        begun = tpm.key_agreement.begin(key)
        assert tpm.key_agreement.finish(key, begun.share) == begun.secret
    assert begun.share[1:33] in trace.captured()
    assert begun.secret.value not in trace.captured()
    assert trace.commands() == [
        "CreateLoaded",
        *("ReadPublic", "StartAuthSession", "ECDH_KeyGen"),
        *("StartAuthSession", "ECDH_ZGen"),
        "FlushContext",
    ]


@pytest.mark.parametrize("command", [_ECDH_KEYGEN, _ECDH_ZGEN])
def test_an_answer_that_was_changed_on_its_way_is_noticed(with_srk: SimulatedTpm, tmp_path: Path, command: int) -> None:
    proxy = TpmProxy(with_srk, tmp_path)
    proxy.spoil(command, 20)
    with pytest.raises(TpmRefusedError, match="not the TPM's"), open_tpm(proxy.tcti) as tpm:
        agree(tpm)
    with_srk.flush()  # libtss2 sends nothing more after an answer that it cannot trust


def test_nothing_is_made_that_stays(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleNotFoundError):
        opened.key_agreement.create_key()
    assert tpm.handles("persistent") == []


def test_another_storage_root_key_gets_no_secret(with_srk: SimulatedTpm) -> None:
    with open_tpm(with_srk.tcti, expected_srk_name=b"\x00\x0b" + bytes(32)) as tpm:
        key = tpm.key_agreement.create_key()
        with pytest.raises(StorageRootKeyChangedError):
            tpm.key_agreement.begin(key)
