"""The unmodified provider uses keys that only their policy opens, through the relay as libtss2 starts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from support.openssl_tpm import openssl_tpm
from support.relay_policies import PolicyWorkshop
from support.tpm import SimulatedTpm
from support.tpm_trace import CommandTrace
from tpm_mtls.relay import relay_tcti

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.relay_policies import PolicyKey

MESSAGE = b"what TLS signs"


class _BehindRelay(SimulatedTpm):
    """The same TPM, seen through the relay."""

    def __init__(self, tpm: SimulatedTpm, *folders: Path, tcti: str = "") -> None:
        self.simulator = tpm.simulator
        self.tcti = relay_tcti(tcti or tpm.tcti, policies=folders)


@pytest.fixture
def workshop(tpm: SimulatedTpm, tmp_path: Path) -> PolicyWorkshop:
    folder = tmp_path / "policies"
    folder.mkdir()
    return PolicyWorkshop(tpm, tmp_path, folder)


def sign(
    tpm: SimulatedTpm, folder: Path, key: str, *, password: str = "", check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """``openssl dgst``, which signs as TLS does."""
    (folder / "message.txt").write_bytes(MESSAGE)
    secret = ("-passin", f"pass:{password}") if password else ()
    return openssl_tpm(
        tpm,
        "dgst",
        "-sha256",
        "-sign",
        key,
        *secret,
        "-out",
        str(folder / "out.sig"),
        str(folder / "message.txt"),
        check=check,
    )


def verify(folder: Path, key: PolicyKey) -> None:
    signature = (folder / "out.sig").read_bytes()
    if isinstance(key.public_key, RSAPublicKey):
        key.public_key.verify(signature, MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        key.public_key.verify(signature, MESSAGE, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_openssl_signs_until_a_pcr_is_extended(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, tmp_path: Path, algorithm: str
) -> None:
    key = workshop.key([workshop.pcr(0, 7)], algorithm=algorithm)
    sign(_BehindRelay(tpm, workshop.policies), tmp_path, str(key.pem))
    verify(tmp_path, key)
    # without the relay the TPM takes no password for this key
    assert sign(tpm, tmp_path, str(key.pem), check=False).returncode != 0
    workshop.extend(7)
    refusal = sign(_BehindRelay(tpm, workshop.policies), tmp_path, str(key.pem), check=False)
    assert refusal.returncode != 0
    assert f"{0x99D} ".encode() in refusal.stderr


def test_openssl_uses_a_persistent_key_by_a_signed_policy(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, tmp_path: Path
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator, b"fleet")])
    load = ("tpm2_load", "-C", "0x81000001", "-u", str(key.pem.with_suffix(".pub")))
    tpm.tool(*load, "-r", str(key.pem.with_suffix(".priv")), "-c", "key.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", "0x81000100", cwd=tmp_path)
    tpm.flush()
    behind = _BehindRelay(tpm, workshop.policies)
    assert sign(behind, tmp_path, "handle:0x81000100", check=False).returncode != 0
    workshop.approve(operator, [workshop.pcr(0), workshop.counter()], policy_ref=b"fleet")
    sign(behind, tmp_path, "handle:0x81000100")
    verify(tmp_path, key)
    workshop.advance()
    assert sign(behind, tmp_path, "handle:0x81000100", check=False).returncode != 0


def test_openssl_gives_the_password_that_the_policy_asks_for(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, tmp_path: Path
) -> None:
    key = workshop.key([workshop.pcr(0), {"type": "auth-value"}], authorization="correct horse")
    behind = _BehindRelay(tpm, workshop.policies)
    sign(behind, tmp_path, str(key.pem), password="correct horse")
    verify(tmp_path, key)
    refusal = sign(behind, tmp_path, str(key.pem), password="wrong", check=False)
    assert refusal.returncode != 0
    assert f"{0x98E} ".encode() in refusal.stderr


def test_counted_by_libtss2_a_signature_takes_three_commands(
    tpm: SimulatedTpm, workshop: PolicyWorkshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = workshop.key([workshop.pcr(0, 7)])
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    sign(_BehindRelay(tpm, workshop.policies, tcti=trace.tcti), tmp_path, str(key.pem))
    sent = trace.commands()
    at = sent.index("StartAuthSession")
    assert sent[at : at + 3] == ["StartAuthSession", "PolicyPCR", "Sign"]
    assert sent.count("FlushContext") == sent.count("Load")  # the key's; the session ends with the signature
