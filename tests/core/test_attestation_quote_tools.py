"""Quotes across tools: what tpm2_quote makes passes our checks, what our code makes passes tpm2_checkquote."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from support.attestation_keys import enroll_attestation_key
from support.event_logs import RECORDED, recorded_pcrs
from support.quotes import NONCE, RECORDED_NONCE, evidence_of, pcrs_file, read_pcrs_file
from support.vectors import VECTORS, vector
from tpm_mtls.attestation.quote_checks import verify_quote
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.evidence_checks import check_attestation_key
from tpm_mtls.structures import parse_public_area
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.structures import PublicArea

_AK = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
KEYS = {
    "ecc-sha256": ("ecc256:ecdsa-sha256:null", "sha256", "ecdsa"),
    "ecc-p384-sha384": ("ecc384:ecdsa-sha384:null", "sha384", "ecdsa"),
    "rsassa": ("rsa2048:rsassa-sha256:null", "sha256", "rsassa"),
    "rsapss-sha384": ("rsa2048:rsapss-sha384:null", "sha384", "rsapss"),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_quote_by_tpm2_quote_passes(tpm: SimulatedTpm, tmp_path: Path, key: str) -> None:
    template, hash_name, scheme = KEYS[key]

    def tool(*command: str) -> None:
        tpm.tool(*command, cwd=tmp_path)
        tpm.flush()

    tool("tpm2_createprimary", "-C", "o", "-G", template, "-a", _AK, "-c", "ak.ctx")
    tool("tpm2_readpublic", "-c", "ak.ctx", "-f", "tpmt", "-o", "ak.tpmt")
    tool("tpm2_pcrextend", f"4:sha256={'44' * 32}")
    tool(
        *("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15+sha1:0,1,2,3,4,5,6,7"),
        *("-q", NONCE.hex(), "-m", "msg", "-s", "sig", "-o", "pcrs", "-g", hash_name, "--scheme", scheme),
    )
    public = parse_public_area((tmp_path / "ak.tpmt").read_bytes())
    values = read_pcrs_file((tmp_path / "pcrs").read_bytes())
    evidence = evidence_of((tmp_path / "msg").read_bytes(), (tmp_path / "sig").read_bytes(), public, values)

    check_attestation_key(public)
    found = verify_quote(evidence, NONCE, public)

    assert found.pcrs == values
    assert {bank: len(of) for bank, of in values.items()} == {"sha256": 16, "sha1": 8}
    assert {pcr for pcr, value in found.values.items() if any(value)} == {4}
    with pytest.raises(EvidenceRefusedError, match="another nonce"):
        verify_quote(evidence, bytes(32), public)


@pytest.mark.parametrize("banks", [("sha256",), ("sha256", "sha1"), ("sha384", "sha256")], ids="+".join)
def test_our_quote_passes_tpm2_checkquote(tpm: SimulatedTpm, tmp_path: Path, banks: tuple[str, ...]) -> None:
    tpm.tool("tpm2_pcrextend", f"4:sha256={'44' * 32}")
    record = enroll_attestation_key(tpm, tmp_path)
    with open_tpm(tpm.tcti) as opened, record.load(opened) as key:
        quotation = opened.attestation.quote(key, NONCE, dict.fromkeys(banks, range(16)))
        values = {bank: opened.pcrs.read(bank, range(16)) for bank in banks}
    _write(tmp_path, record.area, quotation.attest, quotation.signature, values)

    assert _checkquote(tmp_path, NONCE) == 0
    assert _checkquote(tmp_path, bytes(32)) != 0
    found = verify_quote(evidence_of(quotation.attest, quotation.signature, record.area, values), NONCE, record.area)
    assert found.pcrs == values

    values["sha256"][4] = bytes(32)
    _write(tmp_path, record.area, quotation.attest, quotation.signature, values)
    assert _checkquote(tmp_path, NONCE) != 0


@pytest.mark.parametrize("name", RECORDED)
def test_the_recorded_quotes_pass_tpm2_checkquote(name: str) -> None:
    folder = VECTORS / "eventlog" / name
    vector(f"eventlog/{name}/quote.msg")
    files = [
        "-u",
        folder / "ak.pub",
        "-m",
        folder / "quote.msg",
        "-s",
        folder / "quote.sig",
        "-f",
        folder / "quote.pcrs",
    ]
    checked = subprocess.run(["tpm2_checkquote", *files, "-q", RECORDED_NONCE.hex()], capture_output=True, check=False)
    assert checked.returncode == 0
    assert recorded_pcrs(name, range(16))["sha256"] == read_pcrs_file(vector(f"eventlog/{name}/quote.pcrs"))["sha256"]


def _write(
    folder: Path, key: PublicArea, attest: bytes, signature: bytes, values: Mapping[str, Mapping[int, bytes]]
) -> None:
    (folder / "ak.tpmt").write_bytes(key.data)
    (folder / "msg").write_bytes(attest)
    (folder / "sig").write_bytes(signature)
    (folder / "pcrs").write_bytes(pcrs_file(values))


def _checkquote(folder: Path, nonce: bytes) -> int:
    files = ["-u", "ak.tpmt", "-m", "msg", "-s", "sig", "-f", "pcrs"]
    return subprocess.run(
        ["tpm2_checkquote", *files, "-q", nonce.hex()], cwd=folder, capture_output=True, check=False, timeout=60
    ).returncode
