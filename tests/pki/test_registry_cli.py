"""``tpm-mtls pki ek-roots|allow|group|approval|release`` as a person and a script use them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.authority import NOW, new_key
from support.evidence import SoftwareTpm, ek_extensions, new_root
from support.terminal import on_a_terminal
from tpm_mtls.certificates import certificates_pem
from tpm_mtls_pki import approvals, audit, bindings, profiles, records
from tpm_mtls_pki.admission import ek_device_name
from tpm_mtls_pki.csr import key_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls_pki.authority import Authority
    from tpm_mtls_pki.profiles import Issuer

    Pki = Callable[..., Any]

A, B = "a" * 64, "b" * 64


def test_makers_roots_are_added_listed_and_removed(pki: Pki, tmp_path: Path) -> None:
    root = new_root()
    between = root.below("Between")
    (tmp_path / "root.cer").write_bytes(root.der)
    (tmp_path / "others.pem").write_bytes(certificates_pem([between.certificate]))
    added = pki("ek-roots", "add", tmp_path / "root.cer", tmp_path / "others.pem")["ek_roots"]
    assert [(each["root"], each["subject"]) for each in added] == [(True, "CN=Maker Root"), (False, "CN=Between")]
    listed = pki("ek-roots", "list")["ek_roots"]
    assert {each["fingerprint"] for each in listed} == {each["fingerprint"] for each in added}
    assert listed[0]["not_after"].endswith("+00:00")
    file = str(tmp_path / "root.cer")
    openssl = ["openssl", "x509", "-inform", "DER", "-in", file, "-noout", "-fingerprint", "-sha256"]
    fingerprint = subprocess.run(openssl, check=True, capture_output=True, text=True).stdout.strip().partition("=")[2]
    removed = pki("ek-roots", "remove", "--fingerprint", fingerprint)
    assert removed == {"removed": added[0]["fingerprint"], "subject": "CN=Maker Root"}
    assert "see: tpm-mtls pki ek-roots list" in pki("ek-roots", "remove", "--fingerprint", fingerprint, status=10)
    assert pki("ek-roots", "add", tmp_path / "root.cer", text=True).endswith(" root CN=Maker Root\n")


def test_nothing_is_trusted_if_one_file_is_no_ca(pki: Pki, tmp_path: Path) -> None:
    root = new_root()
    leaf = root.certify("chip", new_key().public_key(), ek_extensions())
    (tmp_path / "both.pem").write_bytes(certificates_pem([root.certificate, leaf]))
    assert "error: CN=chip is not a CA's certificate" in pki("ek-roots", "add", tmp_path / "both.pem", status=5)
    assert pki("ek-roots", "list") == {"ek_roots": []}
    assert "cannot read" in pki("ek-roots", "add", tmp_path / "missing.pem", status=8)


def test_endorsement_keys_are_allowed_one_by_one(pki: Pki, tmp_path: Path) -> None:
    answer = pki("allow", "add", "--ek-hash", A.upper(), "--device", "dev", "--group", "line-a")
    assert answer == {"added": [{"ek_hash": A, "device": "dev", "group": "line-a"}]}
    tpm = SoftwareTpm()
    (tmp_path / "ek.cer").write_bytes(
        new_root().certify("", tpm.ek.public_key(), ek_extensions()).public_bytes(Encoding.DER)
    )
    assert pki("allow", "add", "--ek-cert", tmp_path / "ek.cer", text=True) == f"{tpm.ek_hash}\n"
    entry = {"ek_hash": A, "device": "dev", "group": "line-a", "bound_to": None}
    assert entry in pki("allow", "list")["allowed"]
    assert "or another one for its device" in pki("allow", "add", "--ek-hash", B, "--device", "dev", status=10)
    assert pki("allow", "remove", "--ek-hash", A) == {"removed": A}
    assert [each["ek_hash"] for each in pki("allow", "list")["allowed"]] == [tpm.ek_hash]


def test_the_hash_is_what_openssl_prints(pki: Pki, tmp_path: Path) -> None:
    """By the command that the hint names."""
    tpm = SoftwareTpm()
    (tmp_path / "ek.pem").write_bytes(tpm.ek.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command = f"openssl pkey -pubin -in {tmp_path / 'ek.pem'} -outform DER | sha256sum"
    printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.split()[0]  # noqa: S602 - as the hint has it
    assert printed == tpm.ek_hash
    assert "openssl pkey -pubin -in ek.pem -outform DER | sha256sum" in pki("allow", "add", "--ek-hash", "x", status=2)
    assert pki("allow", "add", "--ek-hash", printed)


def test_a_manifest_is_taken_as_a_whole_or_not_at_all(pki: Pki, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"ek_hash,device,group\n{A},dev-1,line-a\n{B},dev-2,\n")
    assert pki("allow", "add", "--file", manifest, text=True) == "2 endorsement keys are on the list now\n"
    c = "c" * 64
    manifest.write_text(f"ek_hash\n{c}\n{A}\n")
    assert "the allow-list has that endorsement key" in pki("allow", "add", "--file", manifest, status=10)
    assert len(pki("allow", "list")["allowed"]) == 2
    manifest.write_text(f"ek_hash\n{c}\nx\n")
    assert "line 3 of the manifest" in pki("allow", "add", "--file", manifest, status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --ek-hash, --ek-cert and --file"),
        (("--ek-hash", A, "--file", "x.csv"), "give one of --ek-hash, --ek-cert and --file"),
        (("--file", "x.csv", "--device", "dev"), "leave --device and --group out"),
        (("--ek-hash", A, "--device", "Dev"), "not a device name"),
        (("--ek-hash", A, "--group", "G"), "not a group's name"),
    ],
)
def test_it_is_clear_which_key_is_meant(pki: Pki, arguments: tuple[str, ...], message: str) -> None:
    assert message in pki("allow", "add", *arguments, status=2)


def test_groups_keep_what_is_not_changed(pki: Pki) -> None:
    usual = {"name": "default", "approval": "unlisted", "naming": "ek", "imported": False, "policies": "none"}
    assert pki("group", "list") == {"groups": [usual]}
    changed = pki("group", "set", "--name", "default", "--approval", "never", "--imported")
    assert changed == usual | {"approval": "never", "imported": True}
    policy = "ab" * 32
    changed = pki("group", "set", "--name", "default", "--naming", "asked", "--policy", policy, "--policy", "none")
    assert changed == {
        "name": "default",
        "approval": "never",
        "naming": "asked",
        "imported": True,
        "policies": f"{policy} none",
    }
    assert pki("group", "set", "--name", "default", "--no-imported", text=True).splitlines()[3] == "imported:  False"
    assert pki("group", "set", "--name", "default", "--policy", "any")["policies"] == "any"
    assert pki("group", "list")["groups"][0]["policies"] == "any"
    assert "contradictory" in pki("group", "set", "--name", "default", "--policy", "any", "--policy", "none", status=2)
    assert "not a policy digest" in pki("group", "set", "--name", "default", "--policy", "x", status=2)
    assert "not a group's name" in pki("group", "set", "--name", "A B", status=2)


def request(authority: Authority, ek_hash: str, asked: str | None) -> None:
    with authority.database.writing() as connection:
        approvals.request(connection, ek_hash, asked=asked, endorsed_by="CN=Maker Root", now=NOW)


def test_requests_are_granted_and_denied(pki: Pki, authority: Authority) -> None:
    request(authority, A, "dev")
    request(authority, B, None)
    first, second = pki("approval", "list")["approvals"]
    assert first == {
        "id": 1,
        "state": "waiting",
        "device": "dev",
        "name_taken": False,
        "requested_at": NOW.isoformat(),
        "ek_hash": A,
        "endorsed_by": "CN=Maker Root",
    }
    assert pki("approval", "grant", "--id", "1", text=True) == f"request 1 is granted: dev, with the EK hash {A}\n"
    assert "give it one: --device" in pki("approval", "grant", "--id", "2", status=2)
    assert pki("approval", "grant", "--id", "2", "--device", "dev-2") == {"granted": 2, "device": "dev-2"}
    assert "not a device name" in pki("approval", "grant", "--id", "2", "--device", "Dev", status=2)
    assert pki("approval", "deny", "--id", "2") == {"denied": 2}
    assert pki("approval", "list", "--state", "waiting") == {"approvals": []}
    assert [each["id"] for each in pki("approval", "list", "--state", "denied")["approvals"]] == [second["id"]]
    assert "there is no request 3" in pki("approval", "deny", "--id", "3", status=10)
    granted = pki("approval", "grant", "--id", "2", "--device", "dev-2", text=True)
    assert granted == f"request 2 is granted: dev-2, with the EK hash {B}\n"
    assert pki("approval", "deny", "--id", "2", text=True) == f"request 2 is denied: the EK hash {B}\n"


def test_a_finished_request_is_not_granted_again(pki: Pki, authority: Authority) -> None:
    request(authority, A, "dev")
    pki("approval", "grant", "--id", "1")
    with authority.database.writing() as connection:
        bindings.bind(connection, "dev", A, now=NOW)
        approvals.use_up(connection, A)
    request(authority, B, None)
    said = pki("approval", "grant", "--id", "1", "--device", "dev", status=10)
    assert "request 1 is finished: it was granted to dev" in said
    assert "which TPM has which name: tpm-mtls pki release" in said
    assert [(each["id"], each["state"]) for each in pki("approval", "list")["approvals"]] == [(2, "waiting")]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_chip_in_the_list_can_be_compared(columns: int, authority: Authority, ca_dir: Path) -> None:
    """Whatever the terminal's width: its EK hash is whole."""
    for ek_hash in (A, B):
        request(authority, ek_hash, ek_device_name(ek_hash))
    command = [sys.executable, "-m", "tpm_mtls", "pki", "approval", "list", "--ca-dir", str(ca_dir)]
    shown = "\n".join(on_a_terminal(command, columns=columns)).split()
    assert [each for each in shown if len(each) == 64] == [A, B]
    assert [each for each in shown if each.startswith("ek-")] == [ek_device_name(A), ek_device_name(B)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list", "no certificates"),
        ("list --state valid", "no such certificates"),
        ("token list", "no tokens"),
        ("allow list", "the allow-list is empty"),
        ("ek-roots list", "no TPM maker is trusted"),
        ("approval list", "no TPM is in the queue"),
        ("approval list --state denied", "no such requests"),
        ("release --list", "no bindings"),
    ],
)
def test_an_empty_list_says_so(command: str, words: str, ca_dir: Path) -> None:
    program = [sys.executable, "-m", "tpm_mtls", "pki", *command.split(), "--ca-dir", str(ca_dir)]
    assert on_a_terminal(program) == [words]


def test_a_name_that_is_in_use_is_marked(pki: Pki, authority: Authority, template_issuer: Issuer) -> None:
    """Whoever approves should know that somebody without a TPM has it."""
    store_certificate(authority, template_issuer, "dev")
    request(authority, A, "dev")
    assert pki("approval", "list")["approvals"][0]["name_taken"] is True


def test_a_device_is_released_and_told_what_is_valid_still(
    pki: Pki, authority: Authority, template_issuer: Issuer
) -> None:
    serial = store_certificate(authority, template_issuer, "dev")
    with authority.database.writing() as connection:
        bindings.bind(connection, "dev", A, now=NOW)
        bindings.bind(connection, "dev-2", B, now=NOW)
    assert pki("allow", "add", "--ek-hash", A)
    assert pki("allow", "list")["allowed"][0]["bound_to"] == "dev"
    assert pki("release", "--device", "dev") == {"released": "dev", "ek_hash": A, "valid": [serial]}
    text = pki("release", "--device", "dev-2", text=True)
    assert text == f"dev-2 is released from the TPM {B}\n"
    assert pki("allow", "list") == {"allowed": []}
    rows = pki("release", "--list")["bindings"]
    assert [(each["device"], each["released_at"] is None) for each in rows] == [("dev", False), ("dev-2", False)]
    assert "dev is bound to no TPM" in pki("release", "--device", "dev", status=10)
    for arguments in ((), ("--device", "dev", "--list")):
        assert "give either --device or --list" in pki("release", *arguments, status=2)
    with authority.database.reading() as connection:
        assert [each.event for each in audit.entries(connection)].count("device-released") == 2


def test_a_release_says_how_to_revoke(pki: Pki, authority: Authority, template_issuer: Issuer) -> None:
    store_certificate(authority, template_issuer, "dev")
    with authority.database.writing() as connection:
        bindings.bind(connection, "dev", A, now=NOW)
    text = pki("release", "--device", "dev", text=True)
    assert text.splitlines()[1] == "1 certificates of it are valid still: tpm-mtls pki revoke --device dev"


def store_certificate(authority: Authority, issuer: Issuer, device: str) -> str:
    key = new_key().public_key()
    certificate = profiles.build_leaf(profiles.DEVICE, profiles.Subject.device(device), key, issuer, now=NOW)
    facts = {"profile": "device", "subject": device, "key_digest": key_digest(key), "grounds": "test"}
    with authority.database.writing() as connection:
        return records.add(connection, certificate, now=NOW, **facts)
