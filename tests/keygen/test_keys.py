"""TLS keys: made as files and at handles, found again, removed; outside tools agree with every one."""

from __future__ import annotations

import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from support.openssl_tpm import openssl_tpm
from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    CredentialError,
    ForeignKeyError,
    HandleNotFoundError,
    HandleOccupiedError,
    PemError,
    StateError,
    StorageError,
    StorageFullError,
    TpmMemoryError,
)
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.structures import Attribute, KeyAlgorithm, parse_public_area, parse_tss2_pem
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.tls_key import read_key_file
from tpm_mtls_keygen import keys
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.keys import (
    FileForm,
    KeyForm,
    PersistentForm,
    create_key,
    first_free_handle,
    load_key,
    remove_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.tpm import LoadedKey

P256 = KeyAlgorithm.ECC_P256


def make(tpm: SimulatedTpm, form: KeyForm, algorithm: KeyAlgorithm = P256, auth: Secret | None = None) -> keys.TpmKey:
    with open_tpm(tpm.tcti) as opened:
        return create_key(opened, algorithm, form, authorization=auth)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_key_file_is_read_and_used_by_openssl(tpm: SimulatedTpm, tmp_path: Path, algorithm: KeyAlgorithm) -> None:
    path = tmp_path / "device.key.pem"
    key = make(tpm, FileForm(path), algorithm)

    assert key.reference == KeyFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN TSS2 PRIVATE KEY-----\n")
    shown = load_pem_public_key(openssl_tpm(tpm, "pkey", "-in", str(path), "-pubout").stdout)
    assert key.public.spki is not None
    assert shown == load_der_public_key(key.public.spki)
    message = tmp_path / "message"
    message.write_bytes(b"hello")
    signature = tmp_path / "signature"
    digest = f"-{algorithm.signature_hash}"
    openssl_tpm(tpm, "dgst", digest, "-sign", str(path), "-out", str(signature), str(message))
    public = tmp_path / "public.pem"
    public.write_bytes(openssl_tpm(tpm, "pkey", "-in", str(path), "-pubout").stdout)
    done = tpm.tool("openssl", "dgst", digest, "-verify", str(public), "-signature", str(signature), str(message))
    assert "Verified OK" in done.stdout


def test_a_key_file_is_what_tpm2_tools_load(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    make(tpm, FileForm(path))
    key = parse_tss2_pem(path.read_bytes())
    for name, content in (("pub", key.public.data), ("priv", key.private)):
        (tmp_path / name).write_bytes(len(content).to_bytes(2, "big") + content)
    loaded = tpm.tool("tpm2_load", "-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "key.ctx", cwd=tmp_path)
    assert loaded.stdout == f"name: {key.public.name.hex()}\n"
    tpm.flush()


def test_a_persistent_key_is_what_tpm2_tools_see(tpm: SimulatedTpm) -> None:
    key = make(tpm, PersistentForm())
    assert str(key.reference) == "handle:0x81000100"
    assert f"name: {key.public.name.hex()}\n" in tpm.tool("tpm2_readpublic", "-c", "0x81000100").stdout
    assert tpm.handles("persistent") == ["0x81000001", "0x81000100"]


def test_the_next_free_handle_is_taken(tpm: SimulatedTpm) -> None:
    assert [str(make(tpm, PersistentForm()).reference) for _ in range(3)] == [
        "handle:0x81000100",
        "handle:0x81000101",
        "handle:0x81000102",
    ]
    with open_tpm(tpm.tcti) as opened:
        remove_key(opened, 0x81000101)
        assert first_free_handle(opened) == 0x81000101
    assert str(make(tpm, PersistentForm()).reference) == "handle:0x81000101"


def test_when_all_handles_are_used_it_says_so(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tpm, PersistentForm())
    monkeypatch.setattr(keys, "LAST_HANDLE", keys.FIRST_HANDLE)
    with open_tpm(tpm.tcti) as opened, pytest.raises(TpmMemoryError, match="all handles for TLS keys are used"):
        first_free_handle(opened)


def test_an_occupied_handle_is_refused_and_named(tpm: SimulatedTpm) -> None:
    first = make(tpm, PersistentForm(0x81000200))
    with pytest.raises(HandleOccupiedError, match=first.public.name.hex()):
        make(tpm, PersistentForm(0x81000200))


def test_a_file_is_never_overwritten(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    path.write_text("precious")
    with pytest.raises(StateError, match=r"device\.key\.pem exists already and is not overwritten"):
        make(tpm, FileForm(path))
    assert path.read_text() == "precious"
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match="exists already"):
        make(tpm, FileForm(dangling))
    assert tpm.handles("persistent") == []  # nothing was asked of the TPM


def test_a_file_that_appears_while_the_key_is_made_is_not_overwritten(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "device.key.pem"
    with open_tpm(tpm.tcti) as opened:
        create = opened.srk.create_key

        def create_slowly(algorithm: KeyAlgorithm, *, authorization: Secret | None, policy: bytes) -> LoadedKey:
            path.write_text("precious")
            return create(algorithm, authorization=authorization, policy=policy)

        monkeypatch.setattr(opened.srk, "create_key", create_slowly)
        with pytest.raises(StateError, match=r"device\.key\.pem exists already and is not overwritten"):
            create_key(opened, P256, FileForm(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "precious"


def test_a_folder_that_cannot_be_written_leaves_nothing(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*no such file or directory"):
        make(tpm, FileForm(tmp_path / "absent" / "device.key.pem"))
    with pytest.raises(StorageError, match=r"cannot write /proc/device\.key\.pem"):
        make(tpm, FileForm(type(tmp_path)("/proc/device.key.pem")))


def test_a_full_disk_leaves_no_file(tpm: SimulatedTpm, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageFullError, match="cannot write") as caught:
            make(tpm, FileForm(tmp_path / "device.key.pem"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "make room" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_key_with_an_authorization_value_says_so_and_needs_it(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    secret = Secret(b"right horse")
    key = make(tpm, FileForm(path), auth=secret)

    assert Attribute.NODA not in key.public.attributes
    assert not read_key_file(path).empty_auth
    assert b"right horse" not in path.read_bytes()
    with open_tpm(tpm.tcti) as opened:
        build_csr(opened, load_key(opened, key.reference, authorization=secret))
        wrong = load_key(opened, key.reference, authorization=Secret(b"wrong"))
        with pytest.raises(AuthorizationError, match="cannot sign: wrong authorization value"):
            build_csr(opened, wrong)


def test_without_its_authorization_value_a_key_is_not_even_tried(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(tpm, FileForm(tmp_path / "device.key.pem"), auth=Secret(b"right"))
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with (
        open_tpm(trace.tcti) as opened,
        pytest.raises(AuthorizationError, match=r"device\.key\.pem needs its authorization value") as caught,
    ):
        load_key(opened, key.reference)
    assert caught.value.hint == "give it: --auth prompt, file:F or credential:NAME"


def test_a_file_that_claims_an_authorization_value_without_lockout_is_tried(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """tpm2_encodeobject writes emptyAuth FALSE even without one."""
    path = tmp_path / "device.key.pem"
    make(tpm, FileForm(path))
    path.write_bytes(
        type(key := read_key_file(path))(key.public, key.private, parent=key.parent, empty_auth=False).to_pem()
    )
    with open_tpm(tpm.tcti) as opened:
        build_csr(opened, load_key(opened, KeyFile(path)))


def test_a_key_file_of_another_tpm_is_refused(
    tpm: SimulatedTpm, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    key = make(tpm, FileForm(tmp_path / "device.key.pem"))
    other = make_tpm()
    with open_tpm(other.tcti) as opened, pytest.raises(ForeignKeyError, match="parent 0x81000001 is not in this TPM"):
        load_key(opened, key.reference)
    make(other, PersistentForm())
    with open_tpm(other.tcti) as opened, pytest.raises(ForeignKeyError, match="belongs to another TPM") as caught:
        load_key(opened, key.reference)
    assert caught.value.hint == "use it on the device that made it, or make a new key: tpm-mtls keygen create"


@pytest.mark.parametrize("kind", [("EC", "group:P-256"), ("RSA", "bits:2048")])
def test_a_key_that_openssl_made_under_the_owner_hierarchy_works(
    tpm: SimulatedTpm, tmp_path: Path, kind: tuple[str, str]
) -> None:
    path = tmp_path / "openssl.key.pem"
    options = ("-propquery", "provider=tpm2", "-algorithm", kind[0], "-pkeyopt", kind[1])
    openssl_tpm(tpm, "genpkey", *options, "-out", str(path))
    assert read_key_file(path).parent == 0x40000001
    with open_tpm(tpm.tcti) as opened:
        request = build_csr(opened, load_key(opened, KeyFile(path)))
    (tmp_path / "csr.der").write_bytes(request)
    tpm.tool("openssl", "req", "-verify", "-noout", "-inform", "DER", "-in", str(tmp_path / "csr.der"))


def test_a_key_under_the_standard_rsa_primary_works(tpm: SimulatedTpm, tmp_path: Path) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda"
    for command in (
        f"tpm2_createprimary -C o -G rsa2048:aes128cfb -a {attributes}|restricted|decrypt -c p.ctx",
        f"tpm2_create -C p.ctx -G ecc256:null -a {attributes}|sign -u pub -r priv",
    ):
        tpm.tool(*command.split(), cwd=tmp_path)
        tpm.flush()
    public = (tmp_path / "pub").read_bytes()[2:]
    with open_tpm(tpm.tcti) as opened:
        private = (tmp_path / "priv").read_bytes()[2:]
        key = opened.load(0x40000001, parse_public_area(public), private, None, rsa_parent=True)
        assert opened.sign(key, bytes(32), hash_name="sha256")


def test_a_software_key_is_no_tpm_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "soft.pem"
    tpm.tool("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", str(path))
    with pytest.raises(CredentialError, match=r"soft\.pem is a software key") as caught:
        read_key_file(path)
    assert f"keygen import --in {path}" in caught.value.hint


def test_a_truncated_file_an_oversized_one_and_none_are_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    make(tpm, FileForm(path))
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(PemError, match="is cut off or damaged"):
        read_key_file(path)
    path.write_bytes(content + b" " * 70000)
    with pytest.raises(PemError, match="is larger than 65536 bytes"):
        read_key_file(path)
    with pytest.raises(StorageError, match="no such file"):
        read_key_file(tmp_path / "absent")


def test_a_parent_in_another_hierarchy_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    path = tmp_path / "device.key.pem"
    make(tpm, FileForm(path))
    key = read_key_file(path)
    path.write_bytes(type(key)(key.public, key.private, parent=0x4000000C, empty_auth=True).to_pem())
    with pytest.raises(CredentialError, match="parent 0x4000000c, which is neither persistent nor the owner hierarchy"):
        read_key_file(path)


def test_a_handle_without_a_key_or_with_none_for_tls_is_refused(tpm: SimulatedTpm) -> None:
    make(tpm, PersistentForm())
    with open_tpm(tpm.tcti) as opened:
        load_key(opened, PersistentHandle(0x81000100))
        with pytest.raises(HandleNotFoundError, match="cannot read what is at 0x81000101"):
            load_key(opened, PersistentHandle(0x81000101))
        with pytest.raises(CredentialError, match=r"handle:0x81000001 is no TLS key: ecc-p256, .*restricted, decrypt"):
            load_key(opened, PersistentHandle(0x81000001))


def test_only_keys_in_the_range_for_them_are_removed(tpm: SimulatedTpm) -> None:
    make(tpm, PersistentForm())
    with open_tpm(tpm.tcti) as opened:
        for handle in (0x81000001, 0x810000FF, 0x81010001):
            with pytest.raises(StateError, match=f"{handle:#010x} is not removed: TLS keys are from 0x81000100"):
                remove_key(opened, handle)
        with pytest.raises(HandleNotFoundError):
            remove_key(opened, 0x81000101)
        remove_key(opened, 0x81000100)
    assert tpm.handles("persistent") == ["0x81000001"]


def test_a_storage_key_is_never_removed(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-c", "p.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000100", cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened, pytest.raises(StateError, match="it is a storage key, other keys may lie under"):
        remove_key(opened, 0x81000100)
    assert tpm.handles("persistent") == ["0x81000100"]


def test_the_umask_does_not_open_a_key_file(tpm: SimulatedTpm, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make(tpm, FileForm(tmp_path / "device.key.pem"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "device.key.pem").stat().st_mode) == 0o600
