"""``tpm-mtls keygen``: the commands as a user types them, with their errors and exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tpm_mtls.cli import run
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: SimulatedTpm) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)


@pytest.fixture
def keygen(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``tpm-mtls keygen …``, which must end with ``status``; its output, or its error lines if it fails."""

    def command(*arguments: str, status: int = 0) -> str:
        assert run(["keygen", *arguments]) == status
        output, errors = capsys.readouterr()
        if not status:
            return output
        assert output == ""
        assert "Traceback" not in errors
        assert errors.startswith("tpm-mtls: error: ")
        assert "\ntpm-mtls: hint: " in errors
        return errors

    return command


def secret(path: Path, value: str = "right horse") -> str:
    path.write_text(value + "\n")
    path.chmod(0o600)
    return f"file:{path}"


def test_create_prints_the_key_reference(keygen: Callable[..., str]) -> None:
    assert keygen("create", "--out", "a.pem") == "a.pem\n"
    assert keygen("create", "--handle", "next") == "handle:0x81000100\n"
    assert keygen("create", "--handle", "0x81000105") == "handle:0x81000105\n"
    made = json.loads(keygen("create", "--handle", "next", "--algorithm", "ecc-p384", "--json"))
    assert (made["key"], made["algorithm"]) == ("handle:0x81000101", "ecc-p384")
    with open_tpm() as tpm:
        assert tpm.read_public(0x81000101).public.name.hex() == made["name"]


def test_create_wants_to_know_where(keygen: Callable[..., str]) -> None:
    assert "either --out FILE, or --handle 0x81000100, or --handle next" in keygen("create", status=2)
    keygen("create", "--out", "a.pem", "--handle", "next", status=2)
    assert "not a handle: 'free'" in keygen("create", "--handle", "free", status=5)
    assert "not a persistent handle of the owner" in keygen("create", "--handle", "0x80000000", status=5)
    assert (
        "invalid value for '--algorithm'" in keygen("create", "--algorithm", "rsa-1024", "--out", "a", status=2).lower()
    )


def test_create_refuses_what_exists(keygen: Callable[..., str]) -> None:
    keygen("create", "--out", "a.pem")
    assert "a.pem exists already" in keygen("create", "--out", "a.pem", status=10)
    keygen("create", "--handle", "0x81000100")
    assert "0x81000100 is occupied by ecc-p256" in keygen("create", "--handle", "0x81000100", status=10)


def test_create_with_authorization_values_from_files(
    keygen: Callable[..., str], tpm: SimulatedTpm, tmp_path: Path
) -> None:
    tpm.tool("tpm2_changeauth", "-c", "owner", "owner secret")
    owner = secret(tmp_path / "owner", "owner secret")
    key = secret(tmp_path / "key")
    errors = keygen("create", "--handle", "next", status=4)
    assert "hint: give the right one: --owner-auth prompt, file:F, credential:NAME or sealed:F" in errors
    keygen("create", "--handle", "next", "--owner-auth", owner, "--auth", key)
    assert "cannot sign" in keygen("csr", "--key", "handle:0x81000100", "--out", "csr.pem", status=4)
    keygen("csr", "--key", "handle:0x81000100", "--out", "csr.pem", "--auth", key)
    keygen("remove", "--handle", "0x81000100", "--yes", status=4)
    keygen("remove", "--handle", "0x81000100", "--yes", "--owner-auth", owner)
    (tmp_path / "open").write_text("x")
    assert "can be read by other users" in keygen(
        "create", "--out", "b.pem", "--auth", f"file:{tmp_path}/open", status=8
    )
    assert "must be given as prompt, file:PATH" in keygen("create", "--out", "b.pem", "--auth", "sesame", status=2)
    assert not (tmp_path / "b.pem").exists()


def test_a_storage_root_key_with_an_authorization_value(
    keygen: Callable[..., str], tpm: SimulatedTpm, tmp_path: Path
) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
    command = f"tpm2_createprimary -C o -G ecc256:aes128cfb -a {attributes} -p srk -c p.ctx"
    tpm.tool(*command.split(), cwd=tmp_path)
    tpm.tool(*["tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000001"], cwd=tmp_path)
    tpm.flush()
    assert "--srk-auth" in keygen("create", "--out", "a.pem", status=4)
    keygen("create", "--out", "a.pem", "--srk-auth", secret(tmp_path / "srk", "srk"))
    keygen("csr", "--key", "a.pem", "--out", "csr.pem", status=4)
    keygen("csr", "--key", "a.pem", "--out", "csr.pem", "--srk-auth", secret(tmp_path / "srk", "srk"))


@pytest.mark.parametrize("where", [("--out", "a.pem"), ("--handle", "next")])
def test_csr_writes_a_request_that_openssl_verifies(keygen: Callable[..., str], where: tuple[str, str]) -> None:
    key = keygen("create", *where).strip()
    assert keygen("csr", "--key", key, "--out", "csr.pem", "--subject-cn", "sensor-17") == "csr.pem\n"
    done = subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-subject", "-in", "csr.pem"], capture_output=True, check=True
    )
    assert done.stdout.replace(b" ", b"").endswith(b"subject=CN=sensor-17\n")  # OpenSSL 3.5 says "verify OK" there, too
    assert json.loads(keygen("csr", "--key", key, "--out", "csr.pem", "--json")) == {"csr": "csr.pem", "key": key}


def test_csr_refuses_a_key_that_is_none(keygen: Callable[..., str], tpm: SimulatedTpm) -> None:
    assert "no such file" in keygen("csr", "--key", "absent.pem", "--out", "csr.pem", status=8)
    assert "nothing at that handle" in keygen("csr", "--key", "handle:0x81000100", "--out", "csr.pem", status=4)
    tpm.tool("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", "soft.pem")
    assert "soft.pem is a software key" in keygen("csr", "--key", "soft.pem", "--out", "csr.pem", status=5)
    assert not os.path.exists("csr.pem")  # noqa: PTH110 - relative to the test's folder


def test_show_reads_a_file_without_a_tpm_and_a_handle_from_it(keygen: Callable[..., str], tpm: SimulatedTpm) -> None:
    keygen("create", "--out", "a.pem")
    keygen("create", "--handle", "next")
    shown = json.loads(keygen("show", "--key", "handle:0x81000100", "--json"))
    assert (shown["role"], shown["parent"], shown["empty_auth"], shown["born_inside"]) == (
        *("TLS key", "0x81000001", None, True),
    )
    assert "role          TLS key\n" in keygen("show", "--key", "handle:0x81000100")
    tpm.stop()
    shown = json.loads(keygen("show", "--key", "a.pem", "--json"))
    assert (shown["parent"], shown["empty_auth"], shown["policy"]) == ("0x81000001", True, "")
    assert "no TPM answers" in keygen("show", "--key", "handle:0x81000100", status=3)


def test_list_shows_what_is_persistent(keygen: Callable[..., str]) -> None:
    assert keygen("list") == "nothing is persistent in this TPM\n"
    assert json.loads(keygen("list", "--json")) == {"objects": []}
    keygen("create", "--handle", "next")
    text = keygen("list")
    assert "0x81000001" in text
    assert "storage root key" in text
    assert "TLS key" in text
    objects = json.loads(keygen("list", "--json"))["objects"]
    assert [each["key"] for each in objects] == ["handle:0x81000001", "handle:0x81000100"]


def test_remove_asks_or_is_told_and_keeps_what_is_not_a_users(keygen: Callable[..., str]) -> None:
    keygen("create", "--handle", "next")
    assert "nobody can be asked for confirmation" in keygen("remove", "--handle", "0x81000100", status=2)
    assert "0x81000001 is not removed" in keygen("remove", "--handle", "0x81000001", "--yes", status=10)
    assert keygen("remove", "--handle", "handle:0x81000100", "--yes") == "removed 0x81000100\n"
    assert "nothing at that handle" in keygen("remove", "--handle", "0x81000100", "--yes", status=4)
    keygen("create", "--handle", "next")
    assert json.loads(keygen("remove", "--handle", "81000100", "--yes", "--json"))["removed"] == "handle:0x81000100"


@pytest.mark.parametrize(("reply", "status"), [(b"y\n", 0), (b"n\n", 2), (b"\n", 2)])
def test_at_a_terminal_remove_asks(keygen: Callable[..., str], tpm: SimulatedTpm, reply: bytes, status: int) -> None:
    keygen("create", "--handle", "next")
    controller, terminal = pty.openpty()
    os.write(controller, reply)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "keygen", "remove", "--handle", "0x81000100"],
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert done.returncode == status, done.stderr
    assert "Remove ecc-p256 (fixedTPM" in done.stderr
    assert ("0x81000100" in tpm.handles("persistent")) is (status != 0)


def test_import_warns_loudly_and_marks_the_key(
    keygen: Callable[..., str], tpm: SimulatedTpm, capsys: pytest.CaptureFixture[str]
) -> None:
    tpm.tool("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", "soft.pem")
    assert run(["keygen", "import", "--in", "soft.pem", "--out", "a.pem"]) == 0
    output, errors = capsys.readouterr()
    assert output == "a.pem\n"
    assert "tpm-mtls: warning: this key existed outside the TPM" in errors
    assert "tpm-mtls: warning: remove the source and all its copies: shred -u soft.pem" in errors
    assert "IMPORTED" in keygen("show", "--key", "a.pem")
    made: dict[str, Any] = json.loads(keygen("import", "--in", "soft.pem", "--handle", "next", "--json"))
    assert (made["key"], made["imported"]) == ("handle:0x81000100", True)
    keygen("csr", "--key", "handle:0x81000100", "--out", "csr.pem")
    assert "a.pem exists already" in keygen("import", "--in", "soft.pem", "--out", "a.pem", status=10)
    assert "a.pem is a key of a TPM already" in keygen("import", "--in", "a.pem", "--out", "b.pem", status=5)


def test_import_of_an_encrypted_key_takes_its_passphrase_from_a_file(
    keygen: Callable[..., str], tpm: SimulatedTpm, tmp_path: Path
) -> None:
    phrase = secret(tmp_path / "phrase")
    command = f"openssl genpkey -algorithm EC -pkeyopt group:P-256 -aes256 -pass {phrase} -out soft.pem"
    tpm.tool(*command.split())
    assert "soft.pem is encrypted" in keygen("import", "--in", "soft.pem", "--handle", "next", status=2)
    wrong = secret(tmp_path / "wrong", "wrong")
    errors = keygen("import", "--in", "soft.pem", "--handle", "next", "--passphrase", wrong, status=5)
    assert "soft.pem is damaged, or the passphrase is wrong" in errors
    assert keygen("import", "--in", "soft.pem", "--handle", "next", "--passphrase", phrase) == "handle:0x81000100\n"


def test_no_secret_is_printed_even_with_debug(tmp_path: Path, tpm: SimulatedTpm) -> None:
    source = secret(tmp_path / "auth", "very-secret-horse")
    for command in (["create", "--out", "a.pem"], ["csr", "--key", "a.pem", "--out", "/absent/csr.pem"]):
        done = subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "--debug", "keygen", *command, "--auth", source],
            env=os.environ | {"TPM_MTLS_TCTI": tpm.tcti},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "very-secret-horse" not in done.stdout + done.stderr


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("create", "csr", "show", "list", "remove", "import", "first-boot", "status"):
        assert run(["keygen", verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Example" in text, verb
        assert "--json" in text, verb
    assert run(["keygen", "nonsense"]) == 2


def test_naming_a_command_imports_neither_pytss_nor_cryptography() -> None:
    script = (
        "import sys; from tpm_mtls.cli import run; run(['keygen', '--help']); run(['keygen', 'create', '--help']); "
        "print([name for name in ('tpm2_pytss', 'cryptography', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_show_ek_prints_the_hash_that_an_allow_list_takes(
    keygen: Callable[..., str], make_tpm: Callable[..., SimulatedTpm], tpm: SimulatedTpm
) -> None:
    shown = json.loads(keygen("show", "--ek", "--json"))

    assert keygen("show", "--ek") == shown["ek_hash"] + "\n"
    assert (shown["template"], shown["certificate"], shown["issuer"]) == ("L-2", None, None)
    certified = json.loads(keygen("show", "--ek", "--json", "--tcti", make_tpm(ek_certificates=True).tcti))
    assert (certified["template"], certified["issuer"]) == ("H-3", "CN=swtpm-localca")
    assert certified["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    assert "say which key" in keygen("show", status=2)
    assert "say which key" in keygen("show", "--ek", "--key", "handle:0x81000001", status=2)
    tpm.tool("tpm2_changeauth", "-c", "e", "secret")
    assert "--endorsement-auth" in keygen("show", "--ek", status=4)
