"""What ``keygen show`` and ``keygen list`` say, checked against what tpm2-tools put there."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import HandleNotFoundError
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.tls_key import read_key_file
from tpm_mtls_keygen.describe import as_text, describe_file, describe_handle, list_objects
from tpm_mtls_keygen.keys import FileForm, PersistentForm, create_key
from tpm_mtls_keygen.table import print_objects

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

OWN = ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA", "sign")


def test_a_persistent_key_is_described_with_its_parent(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        made = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
        found = describe_handle(opened, 0x81000100)

    assert found.key == "handle:0x81000100"
    assert found.role == "TLS key"
    assert found.algorithm == "ecc-p256"
    assert found.scheme == "null"
    assert found.parent == "0x81000001"
    assert found.attributes == OWN
    assert found.name == made.public.name.hex()
    assert found.policy == ""
    assert found.empty_auth is None
    assert found.born_inside
    assert found.public_key is not None
    assert found.public_key.startswith("-----BEGIN PUBLIC KEY-----\n")
    text = as_text(found)
    assert "parent        0x81000001 (storage root key)" in text
    assert "origin        made inside the TPM, and can never leave it\n" in text
    assert "authorization the TPM does not tell" in text
    assert text.endswith("-----END PUBLIC KEY-----")


def test_the_storage_root_key_lies_under_the_owner_hierarchy(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
        found = describe_handle(opened, 0x81000001)
    assert (found.role, found.parent) == ("storage root key", "0x40000001")
    assert "parent        0x40000001 (owner hierarchy)" in as_text(found)


def test_nothing_at_the_handle_is_an_error(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleNotFoundError):
        describe_handle(opened, 0x81000100)


def test_a_key_whose_parent_is_not_persistent_has_no_known_one(tpm: SimulatedTpm, tmp_path: Path) -> None:
    for command in (
        "tpm2_createprimary -C o -c p.ctx",
        "tpm2_create -C p.ctx -G ecc256 -u pub -r priv -c k.ctx",
        "tpm2_evictcontrol -C o -c k.ctx 0x81000100",
    ):
        tpm.tool(*command.split(), cwd=tmp_path)
        tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        found = describe_handle(opened, 0x81000100)
    assert found.parent is None
    assert "parent        none that is persistent" in as_text(found)


def test_a_file_is_described_without_a_tpm(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    with open_tpm(tpm.tcti) as opened:
        made = create_key(opened, KeyAlgorithm.RSA_2048, FileForm(path), authorization=Secret(b"abc"))
    tpm.stop()
    found = describe_file(path)

    assert found.key == str(path)
    assert (found.role, found.algorithm, found.parent, found.empty_auth) == ("TLS key", "rsa-2048", "0x81000001", False)
    assert found.name == made.public.name.hex()
    text = as_text(found)
    assert "authorization needed (--auth)" in text
    assert "made inside the TPM, and can never leave it, says the file" in text


def test_an_imported_key_is_called_so(tpm: SimulatedTpm, tmp_path: Path) -> None:
    soft = tmp_path / "soft.pem"
    tpm.tool("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", str(soft))
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    tpm.tool("tpm2_import", *f"-C 0x81000001 -G ecc -i {soft} -u pub -r priv".split(), cwd=tmp_path)
    tpm.tool("tpm2_load", *["-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "k.ctx"], cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", *["-C", "o", "-c", "k.ctx", "0x81000100"], cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        found = describe_handle(opened, 0x81000100)
    assert not found.born_inside
    assert "IMPORTED: it existed outside the TPM, other copies may exist" in as_text(found)


def test_a_policy_a_fixed_scheme_and_another_origin_are_shown(tpm: SimulatedTpm, tmp_path: Path) -> None:
    (tmp_path / "policy").write_bytes(b"\x07" * 32)
    tpm.tool(
        *["tpm2_createprimary", "-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-L", "policy", "-c", "p.ctx"],
        *("-a", "fixedtpm|fixedparent|sensitivedataorigin|sign|restricted"),
        cwd=tmp_path,
    )
    tpm.tool(*["tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000200"], cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        found = describe_handle(opened, 0x81000200)
    assert (found.role, found.policy, found.parent) == ("attestation key", "07" * 32, "0x40000001")
    text = as_text(found)
    assert "algorithm     ecc-p256, ecdsa-sha256 only" in text
    assert f"policy        {'07' * 32}" in text


def test_every_persistent_object_is_listed_with_its_role(
    make_tpm: Callable[..., SimulatedTpm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tpm = make_tpm(ek_certificates=True)
    (tmp_path / "data").write_text("secret")
    with open_tpm(tpm.tcti) as opened:
        create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
    for command in (
        "tpm2_create -C 0x81000001 -i data -u pub -r priv -c s.ctx",
        "tpm2_evictcontrol -C o -c s.ctx 0x81000300",
        "tpm2_create -C 0x81000001 -G hmac -u pub -r priv -c h.ctx",
        "tpm2_evictcontrol -C o -c h.ctx 0x81000301",
        "tpm2_createprimary -C o -c p.ctx",
        "tpm2_evictcontrol -C o -c p.ctx 0x81000302",
        "tpm2_create -C p.ctx -G ecc256 -u pub -r priv -c k.ctx",
        "tpm2_evictcontrol -C o -c k.ctx 0x81000050",
    ):
        tpm.tool(*command.split(), cwd=tmp_path)
        tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        found = list_objects(opened)

    assert [(each.key.removeprefix("handle:"), each.role, each.parent) for each in found] == [
        ("0x81000001", "storage root key", "0x40000001"),
        ("0x81000050", "signing key", "0x81000302"),
        ("0x81000100", "TLS key", "0x81000001"),
        ("0x81000300", "sealed data", "0x81000001"),
        ("0x81000301", "other", "0x81000001"),
        ("0x81000302", "storage key", "0x40000001"),
        ("0x81010001", "endorsement key", "0x4000000b"),
        ("0x81010016", "endorsement key", "0x4000000b"),
    ]
    assert found[3].public_key is None
    assert "BEGIN" not in as_text(found[3])
    print_objects(found)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("0x")]
    assert [line[0] for line in lines] == tpm.handles("persistent")
    assert "\x1b" not in printed


def test_at_a_terminal_the_list_fits_its_width(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
    controller, terminal = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "keygen", "list", "--tcti", tpm.tcti],
            env=os.environ | {"COLUMNS": "80", "TERM": "xterm"},
            stdout=terminal,
            check=True,
        )
        printed = os.read(controller, 10000).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    lines = [re.sub("\x1b[^m]*m", "", line).rstrip() for line in printed.splitlines()]
    assert any(line.lstrip().startswith("0x81000100") for line in lines)
    assert max(map(len, lines)) <= 80


def test_an_empty_tpm_is_said_to_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_objects([])
    assert capsys.readouterr().out == "nothing is persistent in this TPM\n"


def test_a_description_in_the_file_is_shown(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    with open_tpm(tpm.tcti) as opened:
        create_key(opened, KeyAlgorithm.ECC_P256, FileForm(path))
    found = replace(describe_file(path), description="made in hall 3", parent="0x81000500", born_inside=False)
    text = as_text(found)
    assert "description   made in hall 3" in text
    assert "parent        0x81000500\n" in text
    assert "origin        not made inside the TPM, says the file" in text
    assert read_key_file(path).description is None
