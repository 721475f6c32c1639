"""``tpm-mtls pki`` as a person and a script use it: answers, exit codes, files and their modes."""

from __future__ import annotations

import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.authority import attacking_extensions, make_csr, new_key
from support.other_user import give, needs_root, not_given
from support.terminal import on_a_terminal
from tpm_mtls.certificates import load_certificates
from tpm_mtls.cli import run
from tpm_mtls.errors import UsageError
from tpm_mtls.operator_names import operator_name
from tpm_mtls_pki.cli_serve import parse_listen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Pki = Callable[..., Any]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """Where the passphrase is."""
    file = tmp_path / "passphrase"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    return f"file:{file}"


@pytest.fixture
def csr(tmp_path: Path) -> Path:
    file = tmp_path / "request.csr"
    file.write_bytes(make_csr(new_key(), name="evil.example", extensions=attacking_extensions()))
    return file


def test_init_makes_a_ca_and_says_where_its_root_is(
    tmp_path: Path, secret: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "ca"
    command = ["pki", "init", "--ca-dir", str(folder), "--name", "Example CA", "--passphrase", secret]
    assert run(command) == 0
    assert capfd.readouterr().out == f"{folder}/root.pem\n"
    assert run(command) == 10
    assert "there is a CA in" in capfd.readouterr().err


def test_a_server_certificate_has_the_names_given_and_not_the_csrs(
    pki: Pki, csr: Path, secret: str, tmp_path: Path, ca_dir: Path
) -> None:
    out = tmp_path / "server.pem"
    options = ["--profile", "server", "--name", "localhost", "--name", "h.example", "--ip", "127.0.0.1", "--ip", "::1"]
    answer = pki("issue", "--csr", csr, *options, "--out", out, "--passphrase", secret)
    leaf, issuing = load_certificates(out)
    assert (issuing,) == load_certificates(ca_dir / "issuing.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "h.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert answer["serial"] == f"{leaf.serial_number:040x}"
    assert answer["pem"] == out.read_text()
    assert "critical BasicConstraints CA:TRUE" in answer["ignored"]


@needs_root
def test_a_ca_that_root_makes_in_the_services_folder_is_the_services(tmp_path: Path, secret: str) -> None:
    folder = give(tmp_path / "ca")
    assert run(["pki", "init", "--ca-dir", str(folder), "--name", "Example CA", "--passphrase", secret]) == 0
    assert (folder / "store.sqlite").stat().st_mode & 0o777 == 0o600
    assert not not_given(folder)


@needs_root
def test_a_token_that_root_makes_stays_roots(pki: Pki, tmp_path: Path) -> None:
    """A secret in the clear is for who asked for it."""
    out = give(tmp_path / "theirs") / "token"
    pki("token", "create", "--device", "sensor-17", "--out", out)
    assert out.stat().st_uid == 0


@needs_root
def test_root_administers_the_services_ca_and_leaves_nothing_that_the_service_cannot_open(
    pki: Pki, csr: Path, secret: str, ca_dir: Path
) -> None:
    give(ca_dir)
    issued = pki("issue", "--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", secret)
    pki("revoke", "--serial", issued["serial"], "--passphrase", secret)
    assert not not_given(ca_dir)


def test_a_public_key_will_do_instead_of_a_csr(pki: Pki, secret: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_bytes(new_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    text = pki("issue", "--public-key", file, "--profile", "device", "--name", "dev", "--passphrase", secret, text=True)
    assert text.count("BEGIN CERTIFICATE") == 2
    assert pki("issue", "--public-key", file, "--profile", "server", "--ip", "::1", "--passphrase", secret, status=5)


def test_an_operators_key_is_never_a_devices(pki: Pki, secret: str, csr: Path) -> None:
    answer = pki("issue", "--csr", csr, "--profile", "operator", "--name", "alice@example.com", "--passphrase", secret)
    assert answer["subject"] == "alice@example.com"
    assert operator_name(x509.load_pem_x509_certificate(answer["pem"].encode())) == "alice@example.com"
    refused = pki("issue", "--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", secret, status=5)
    assert "the key is refused: key-of-another" in refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "device"], "a device has one name"),
        (["--profile", "device", "--name", "a", "--name", "b"], "a device has one name"),
        (["--profile", "device", "--name", "a", "--ip", "::1"], "a device has one name"),
        (["--profile", "device", "--name", "Upper"], "not a device name: 'Upper'"),
        (["--profile", "server"], "a server needs a name or an address"),
        (["--profile", "server", "--ip", "1.2.3"], "'1.2.3' does not appear to be an ipv4 or ipv6 address"),
        (["--profile", "operator"], "an operator has one name"),
        (["--profile", "operator", "--name", "a@b.example", "--name", "c@b.example"], "an operator has one name"),
        (["--profile", "operator", "--name", "a@b.example", "--ip", "::1"], "an operator has one name"),
        (["--profile", "operator", "--name", "sensor-1.example"], "not an operator's name: 'sensor-1.example'"),
        (["--profile", "device", "--name", "alice@example.com"], "not a device name: 'alice@example.com'"),
        (["--profile", "ca", "--name", "x"], "'ca' is not one of"),
    ],
)
def test_wrong_names_are_refused(pki: Pki, csr: Path, secret: str, options: list[str], message: str) -> None:
    assert message in pki("issue", "--csr", csr, "--passphrase", secret, *options, status=2)


def test_issue_takes_one_source_of_the_key(pki: Pki, csr: Path, secret: str) -> None:
    options = ["--profile", "device", "--name", "dev", "--passphrase", secret]
    assert "a CSR or a public key is needed" in pki("issue", *options, status=2)
    assert "a CSR or a public key is needed" in pki("issue", "--csr", csr, "--public-key", csr, *options, status=2)


def test_a_wrong_passphrase_issues_nothing(pki: Pki, csr: Path, tmp_path: Path) -> None:
    wrong, out = tmp_path / "wrong", tmp_path / "out.pem"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    options = ["--csr", csr, "--profile", "device", "--name", "dev", "--out", out, "--passphrase", f"file:{wrong}"]
    assert "the passphrase is wrong" in pki("issue", *options, status=5)
    assert not out.exists()
    assert pki("list") == {"certificates": []}


def test_a_passphrase_on_the_command_line_is_refused_and_not_repeated(pki: Pki, csr: Path) -> None:
    options = ["--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", "hunter2"]
    assert "hunter2" not in pki("issue", *options, status=2)


def test_certificates_are_listed_shown_and_revoked(pki: Pki, csr: Path, secret: str, ca_dir: Path) -> None:
    options = ["--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", secret]
    first, second = (pki("issue", *options)["serial"] for _ in range(2))
    assert {each["serial"] for each in pki("list", "--state", "valid")["certificates"]} == {first, second}
    shown = pki("show", "--serial", first)
    assert (shown["subject"], shown["state"], shown["grounds"]) == ("dev", "valid", "administrator")
    assert "BEGIN CERTIFICATE" in shown["pem"]
    pretty = ":".join(first[at : at + 2] for at in range(0, 40, 2)).upper()
    assert pki("revoke", "--serial", pretty, "--reason", "superseded") == {
        "revoked": [first],
        "reason": "superseded",
        "crl_signed": False,
    }
    assert pki("show", "--serial", first)["state"] == "revoked"
    assert "revoked already" in pki("revoke", "--serial", first, status=10)
    assert pki("revoke", "--device", "dev", "--passphrase", secret)["revoked"] == [second]
    assert "dev has no valid certificate" in pki("revoke", "--device", "dev", status=10)
    assert {each["state"] for each in pki("list")["certificates"]} == {"revoked"}
    assert len(x509.load_pem_x509_crl((ca_dir / "crl.pem").read_bytes())) == 2


def test_what_is_to_be_shown_or_revoked_is_named_once(pki: Pki) -> None:
    assert "what is to be revoked?" in pki("revoke", status=2)
    assert "what is to be revoked?" in pki("revoke", "--serial", "1", "--device", "x", status=2)
    assert "exclude each other" in pki("show", "--serial", "1", "--device", "x", status=2)
    assert "not a serial number" in pki("show", "--serial", "x", status=2)
    for options in (["--serial", "1"], ["--device", "nobody"]):
        assert "issued no such certificate" in pki("show", *options, status=10)


def test_show_without_a_certificate_shows_the_ca(pki: Pki, ca_dir: Path) -> None:
    assert pki("show")["pem"] == (ca_dir / "chain.pem").read_text()
    assert pki("show", text=True).startswith("Example CA\n-----BEGIN CERTIFICATE-----\n")


def test_show_is_readable(pki: Pki, csr: Path, secret: str) -> None:
    pki("issue", "--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", secret)
    text = pki("show", "--device", "dev", text=True)
    assert "subject:     dev\n" in text
    assert "revoked_at" not in text


def test_tokens_are_made_listed_and_revoked(pki: Pki, tmp_path: Path) -> None:
    out = tmp_path / "dev.token"
    made = pki("token", "create", "--device", "dev", "--ttl", "7d", "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "token" not in made
    device, colon, token = out.read_text().partition(":")
    assert (device, colon, len(token)) == ("dev", ":", 44)  # as curl's -u and first-boot's --token-file take it
    other = pki("token", "create", "--device", "dev2")
    assert len(other["token"]) == 43
    assert pki("token", "create", "--device", "dev3", text=True).strip() != other["token"]
    assert pki("token", "revoke", "--id", "2") == {"revoked": 2}
    assert "no unused token 2" in pki("token", "revoke", "--id", "2", status=10)
    states = [(each["id"], each["device"], each["state"]) for each in pki("token", "list")["tokens"]]
    assert states == [(1, "dev", "open"), (2, "dev2", "revoked"), (3, "dev3", "open")]


def test_a_token_whose_file_cannot_be_written_does_not_exist(pki: Pki, tmp_path: Path) -> None:
    assert "cannot write" in pki("token", "create", "--device", "dev", "--out", tmp_path / "no" / "t", status=8)
    assert pki("token", "list") == {"tokens": []}


def test_a_token_lives_for_the_time_span_that_is_asked_for(pki: Pki) -> None:
    before = datetime.now(UTC)
    expires = datetime.fromisoformat(pki("token", "create", "--device", "dev", "--ttl", "30m")["expires_at"])
    assert timedelta(minutes=29, seconds=59) <= expires - before <= timedelta(minutes=31)
    assert "not a span of time" in pki("token", "create", "--device", "dev2", "--ttl", "1w", status=2)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:8443", ("::1", 8443)), ("localhost:65535", ("localhost", 65535))],
)
def test_addresses_to_listen_at(text: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize("text", ["", ":1", "127.0.0.1", "h:", "h:x", "h:65536", "h:-1", "h:²"])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="not an address to listen at"):
        parse_listen(text)


def test_the_crl_is_printed_written_and_signed(pki: Pki, secret: str, tmp_path: Path, ca_dir: Path) -> None:
    first = pki("crl")
    assert (first["number"], first["entries"]) == (1, 0)
    assert pki("crl", text=True) == first["pem"] == (ca_dir / "crl.pem").read_text()
    out = tmp_path / "x.crl"
    second = pki("crl", "--passphrase", secret, "--der", "--out", out)
    assert second["number"] == 2
    assert x509.load_der_x509_crl(out.read_bytes()) == x509.load_pem_x509_crl((ca_dir / "crl.pem").read_bytes())
    assert pki("crl", "--root")["number"] == 1
    assert pki("crl", "--root", "--passphrase", secret)["number"] == 2
    pem = x509.load_pem_x509_crl((ca_dir / "root.crl.pem").read_bytes())
    assert pem.is_signature_valid(load_certificates(ca_dir / "root.pem")[0].public_key())  # type: ignore[arg-type]


def test_a_store_without_a_crl_says_so(pki: Pki, ca_dir: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(ca_dir / "store.sqlite")) as connection, connection:
        connection.execute("DELETE FROM crls")
    assert "there is no CRL" in pki("crl", status=10)


def test_the_crl_goes_to_stdout_in_der(ca_dir: Path) -> None:
    command = [sys.executable, "-m", "tpm_mtls", "pki", "crl", "--der", "--ca-dir", str(ca_dir)]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert x509.load_der_x509_crl(der) == x509.load_pem_x509_crl((ca_dir / "crl.pem").read_bytes())


def test_the_audit_log_is_printed_and_verified(pki: Pki, csr: Path, secret: str, ca_dir: Path) -> None:
    pki("issue", "--csr", csr, "--profile", "device", "--name", "dev", "--passphrase", secret)
    entries = pki("audit")["entries"]
    assert [each["event"] for each in entries] == ["ca-created", "crl-signed", "crl-signed", "certificate-issued"]
    assert "critical BasicConstraints CA:TRUE" in entries[-1]["detail"]["ignored"]
    assert pki("audit", "--verify")["rows"] == 4
    assert pki("audit", text=True).count("\n") == 4
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(ca_dir / "store.sqlite")) as connection, connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET subject = 'someone else' WHERE id = 4")
    assert "the audit log was changed at or before row 4" in pki("audit", "--verify", status=10)


def test_a_terminal_gets_a_table(ca_dir: Path) -> None:
    """And a pipe gets lines with tabs."""
    command = [sys.executable, "-m", "tpm_mtls", "pki", "audit", "--ca-dir", str(ca_dir)]
    title, _, first, *_ = (line.split() for line in on_a_terminal(command, columns=200) if line.strip())
    assert title == ["id", "at", "event", "subject", "detail"]
    assert (first[0], first[2]) == ("1", "ca-created")
    assert any(line.startswith("detail:") for line in on_a_terminal(command, columns=60))
    empty = subprocess.run([*command[:4], "list", *command[5:]], capture_output=True, text=True, check=True)
    assert empty.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        *("", "init", "issue", "revoke", "crl", "list", "show", "audit", "serve"),
        *("token", "token create", "token list", "token revoke"),
    ],
)
def test_every_command_explains_itself_with_an_example(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["pki", *command.split(), "--help"]) == 0
    out = capfd.readouterr().out
    assert command in {"", "token"} or "Example: tpm-mtls pki" in out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tpm_mtls.cli import run\nrun(['pki', '--help'])\n"
        "print(sorted({'cryptography', 'sqlalchemy', 'aiohttp', 'rich', 'tpm2_pytss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
