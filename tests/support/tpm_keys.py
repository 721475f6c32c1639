"""Keys in a simulated TPM, made with tpm2-tools: the outside view of what our own tools must agree with."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization

from tpm_mtls.files import write_atomic
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from support.tpm import SimulatedTpm

SRK = "0x81000001"
ALGORITHMS = {"ecc-p256": "ecc256", "ecc-p384": "ecc384", "rsa-2048": "rsa2048"}

_SRK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_KEY_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"


@dataclass(frozen=True)
class TpmKey:
    """A key in a simulated TPM.

    Attributes:
        reference: how programs name it.
        public_key: for its certificate.
    """

    reference: KeyReference
    public_key: CertificatePublicKeyTypes


def make_srk(tpm: SimulatedTpm, folder: Path) -> None:
    """The persistent storage root key (TCG template, ECC P-256), unless it is there."""
    if SRK in tpm.handles("persistent"):
        return
    algorithms = ("-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb")
    tpm.tool("tpm2_createprimary", *algorithms, "-a", _SRK_ATTRIBUTES, "-c", "srk.ctx", cwd=folder)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "srk.ctx", SRK, cwd=folder)
    tpm.flush()


def make_key(
    tpm: SimulatedTpm,
    folder: Path,
    algorithm: str = "ecc-p256",
    *,
    handle: int | None = None,
    authorization: str | None = None,
    empty_auth: bool | None = None,
) -> TpmKey:
    """A new signing key under the SRK: a TSS2 PEM file, or at the persistent ``handle``.

    Args:
        tpm: the TPM.
        folder: where its files go.
        algorithm: one of `ALGORITHMS`.
        handle: makes it persistent there.
        authorization: its authorization value; without one it is not protected against dictionary attacks.
        empty_auth: what the PEM file says about it, by default the truth.
    """
    make_srk(tpm, folder)
    name = f"{algorithm}-{len(list(folder.glob('*.pub')))}"
    attributes = _KEY_ATTRIBUTES if authorization else f"{_KEY_ATTRIBUTES}|noda"
    secret = ("-p", authorization) if authorization else ()
    blobs = ("-u", f"{name}.pub", "-r", f"{name}.priv")
    tpm.tool("tpm2_create", "-C", SRK, "-G", ALGORITHMS[algorithm], "-a", attributes, *secret, *blobs, cwd=folder)
    tpm.tool("tpm2_load", "-C", SRK, *blobs, "-c", f"{name}.ctx", cwd=folder)
    tpm.tool("tpm2_readpublic", "-c", f"{name}.ctx", "-f", "pem", "-o", f"{name}.spki", cwd=folder)
    public_key = serialization.load_pem_public_key((folder / f"{name}.spki").read_bytes())
    if handle is not None:
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{name}.ctx", f"{handle:#x}", cwd=folder)
        reference: KeyReference = PersistentHandle(handle)
    else:
        path = folder / f"{name}.key.pem"
        # it says that there is an authorization value even when there is none, and leaves its session in the TPM
        tpm.tool("tpm2_encodeobject", "-C", SRK, *blobs, "-o", path.name, cwd=folder)
        tpm.tool("tpm2_flushcontext", "--loaded-session")
        set_empty_auth(path, empty=authorization is None if empty_auth is None else empty_auth)
        reference = KeyFile(path)
    tpm.flush()
    return TpmKey(reference, public_key)  # type: ignore[arg-type]  # tpm2-tools wrote an EC or RSA key


def set_empty_auth(path: Path, *, empty: bool) -> None:
    """Changes what a TSS2 PEM file says about its authorization value (field emptyAuth, [0] BOOLEAN)."""
    der = base64.b64decode("".join(line for line in path.read_text().splitlines() if "-----" not in line))
    at = der.index(bytes.fromhex("a0030101")) + 4
    der = der[:at] + (b"\xff" if empty else b"\x00") + der[at + 1 :]
    text = base64.encodebytes(der).decode()
    pem = f"-----BEGIN TSS2 PRIVATE KEY-----\n{text}-----END TSS2 PRIVATE KEY-----\n"
    write_atomic(path, pem.encode(), mode=0o600)
