"""Somebody else's credentials, opened by our device side: tpm2_makecredential needs no TPM, as a CA does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures import EkTemplate
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

_HEADER_LENGTH = 8  # magic and version of tpm2-tools' file; then TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET


def make_credential(
    tpm: SimulatedTpm, folder: Path, ek_public: bytes, name: bytes, secret: bytes
) -> tuple[bytes, bytes]:
    (folder / "ek.tpub").write_bytes(len(ek_public).to_bytes(2, "big") + ek_public)
    (folder / "secret").write_bytes(secret)
    tpm.tool(
        "tpm2_makecredential", "-T", "none", "-u", "ek.tpub", "-s", "secret", "-n", name.hex(), "-o", "credential",
        cwd=folder,
    )  # fmt: skip
    content = (folder / "credential").read_bytes()[_HEADER_LENGTH:]
    end = 2 + int.from_bytes(content[:2], "big")
    return content[:end], content[end:]


def test_what_tpm2_makecredential_made_is_opened(make_tpm: Callable[..., SimulatedTpm], tmp_path: Path) -> None:
    """For endorsement keys of both ranges; the same for another attestation key stays closed, and says why."""
    tpm = make_tpm(ek_certificates=True)
    secret = bytes(range(32))
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
        for template in (EkTemplate.RSA_2048, EkTemplate.HIGH_ECC_P384, EkTemplate.ECC_P256):
            with opened.srk.create_attestation_key() as ak, opened.endorsement.use(template) as ek:
                name = ak.public.name
                blob, encrypted = make_credential(tpm, tmp_path, ek.public.data, name, secret)
                assert opened.attestation.activate_credential(ek, ak, blob, encrypted).value == secret
                other = name[:-1] + bytes([name[-1] ^ 1])
                blob, encrypted = make_credential(tpm, tmp_path, ek.public.data, other, secret)
                with pytest.raises(EvidenceError, match="not for this TPM and this attestation key"):
                    opened.attestation.activate_credential(ek, ak, blob, encrypted)
