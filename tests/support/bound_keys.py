"""Keys with a policy, made with tpm2-tools, and the policy in a file beside them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization

from support.tpm_keys import ALGORITHMS, SRK, TpmKey, make_srk, set_empty_auth
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyDocument
from tpm_mtls.policy.files import write_policy

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import Assertion

_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|sign|noda"  # no userwithauth: only its policy uses it


def make_bound_key(
    tpm: SimulatedTpm,
    folder: Path,
    *policy: Assertion,
    algorithm: str = "ecc-p256",
    name: str = "bound",
    handle: int | None = None,
) -> TpmKey:
    """A new signing key, usable only while ``policy`` holds; the policy is in ``folder``.

    The key is in a TSS2 PEM file there, too, or at the persistent ``handle``.
    """
    make_srk(tpm, folder)
    (folder / f"{name}.digest").write_bytes(policy_digest(policy))
    blobs = ("-u", f"{name}.pub", "-r", f"{name}.priv")
    shape = ("-G", ALGORITHMS[algorithm], "-a", _ATTRIBUTES, "-L", f"{name}.digest")
    tpm.tool("tpm2_create", "-C", SRK, *shape, *blobs, cwd=folder)
    tpm.tool("tpm2_load", "-C", SRK, *blobs, "-c", f"{name}.ctx", cwd=folder)
    tpm.tool("tpm2_readpublic", "-c", f"{name}.ctx", "-f", "pem", "-o", f"{name}.spki", cwd=folder)
    if handle is not None:
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{name}.ctx", f"{handle:#x}", cwd=folder)
        reference: KeyReference = PersistentHandle(handle)
    else:
        path = folder / f"{name}.key.pem"
        tpm.tool("tpm2_encodeobject", "-C", SRK, *blobs, "-o", path.name, cwd=folder)
        tpm.tool("tpm2_flushcontext", "--loaded-session")
        set_empty_auth(path, empty=True)
        reference = KeyFile(path)
    tpm.flush()
    area = (folder / f"{name}.pub").read_bytes()[2:]
    write_policy(folder, PolicyDocument(name=(b"\x00\x0b" + hashlib.sha256(area).digest()).hex(), policy=tuple(policy)))
    public_key = serialization.load_pem_public_key((folder / f"{name}.spki").read_bytes())
    return TpmKey(reference, public_key)  # type: ignore[arg-type]  # tpm2-tools wrote an EC or RSA key
