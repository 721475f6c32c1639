"""An identity without a TPM, for who asked for it: by token only, marked as such, and never after one with a TPM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.attested import COPY, DEVICE, AttestedBench
from support.authority import make_token
from support.certificates import TestCa, write_software_key
from support.handshakes import handshake
from support.power_cut import DIES_AT_FILE_CHANGE
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.cli import run
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateMismatchError,
    IdentityError,
    PeerUnreachableError,
    RequestRefusedError,
    StorageError,
    TctiInvalidError,
    TokenRefusedError,
    TpmUnavailableError,
    UsageError,
)
from tpm_mtls.identity import CERTIFICATE, Identity, load_identity, load_record
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tls import client_context, server_context
from tpm_mtls_keygen import soft_first_boot
from tpm_mtls_keygen.first_boot_folder import INSTALL, KeyPlace
from tpm_mtls_keygen.first_boot_run import run as run_with_tpm
from tpm_mtls_keygen.first_boot_settings import Outcome, World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.issued import due_at
from tpm_mtls_keygen.restore import restore
from tpm_mtls_pki import bindings

NOWHERE = "swtpm:host=127.0.0.1,port=1"
FILES = {"ca.cert.pem": "0644", "device.cert.pem": "0644", "device.key.pem": "0600", "identity.json": "0640"}


class SoftBench:
    """A device without a TPM, the project's own CA, and a token for it."""

    def __init__(self, attested: AttestedBench, folder: Path) -> None:
        self.attested = attested
        self.folder = attested.folder
        self.tcti = NOWHERE
        self.kernel = folder / "no-tpm"
        self._tokens = folder

    def token(self, device: str = DEVICE) -> Path:
        path = self._tokens / f"{device}.token"
        path.write_text(f"{device}:{make_token(self.attested.registrar, device)}\n")
        path.chmod(0o600)
        return path

    def run(self, world: World | None = None, **changes: Any) -> Outcome | None:  # noqa: ANN401 - any setting
        changes = {"wish": Wish(), "token_file": self.token() if "token_file" not in changes else None} | changes
        settings = replace(self.attested.settings, tcti=self.tcti, **changes)
        return soft_first_boot.run(settings, world or World(), kernel=self.kernel)

    def command(self, verb: str, *options: str) -> list[str]:
        tcti = () if verb == "renew" else ("--tcti", self.tcti)
        return [*self.attested.command(verb), *tcti, *options]

    def assert_whole(self) -> None:
        """Key, certificate and trust belong together, say so to openssl too, and nobody else reads the key."""
        assert {path.name: f"{path.stat().st_mode & 0o7777:04o}" for path in self.folder.iterdir()} == FILES
        record = load_record(self.folder)
        assert record is not None
        assert (record.is_tpm, record.key_name, record.srk_name, record.ek_sha256) == (False, "", "", None)
        leaf, key = str(self.folder / "device.cert.pem"), str(self.folder / "device.key.pem")
        assert openssl("x509", "-in", leaf, "-noout", "-pubkey") == openssl("pkey", "-in", key, "-pubout")
        verified = openssl(
            *("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(self.attested.trust)),
            *("-untrusted", leaf, leaf),
        )
        assert verified.endswith("OK\n")
        outcome = self.run()
        assert outcome is not None
        assert not outcome.changed


def openssl(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture
def soft(attested: AttestedBench, tmp_path: Path) -> SoftBench:
    return SoftBench(attested, tmp_path)


@pytest.fixture
def enrolled(soft: SoftBench) -> SoftBench:
    soft.run()
    return soft


def test_without_a_tpm_it_fails_unless_asked_otherwise(soft: SoftBench, capsys: pytest.CaptureFixture[str]) -> None:
    token = str(soft.token())
    assert run(soft.command("first-boot", "--token-file", token)) == 3
    assert not (soft.folder / "identity.json").exists()
    assert run(soft.command("first-boot", "--token-file", token, "--no-tpm", "fail")) == 3
    capsys.readouterr()
    assert run(soft.command("first-boot", "--token-file", token, "--no-tpm=soft", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "changed": True,
        "restored": False,
        "device": DEVICE,
        "is_tpm": False,
        "key": "device.key.pem",
        "state_dir": str(soft.folder),
        "ignored": None,
    }
    soft.assert_whole()


def test_tls_works_with_it_and_without_a_tpm(enrolled: SoftBench, tmp_path: Path) -> None:
    """The server must be of another CA here: the device's certificate is no server's."""
    other = TestCa(tmp_path).software_identity("localhost")
    server = server_context(Identity(other.key, other.certificate, enrolled.attested.trust))
    mine = load_identity(enrolled.folder)
    context = client_context(Identity(mine.key, mine.certificate, tmp_path / "test-root.pem"), tcti=NOWHERE)
    assert handshake(context, server).client == DEVICE


def test_a_second_run_changes_nothing(enrolled: SoftBench) -> None:
    before = enrolled.attested.files()
    outcome = enrolled.run()
    assert outcome is not None
    assert not outcome.changed
    assert enrolled.attested.files() == before


def test_with_a_tpm_the_key_lives_in_it_whatever_the_option_says(
    soft: SoftBench, capsys: pytest.CaptureFixture[str]
) -> None:
    soft.tcti = soft.attested.tpm.tcti
    assert run(soft.command("first-boot", "--token-file", str(soft.token()), "--no-tpm=soft", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["is_tpm"], said["key"]) == (True, "handle:0x81000100")
    assert run(soft.command("first-boot", "--token-file", str(soft.token()), "--no-tpm=soft", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == said | {"changed": False}


# -- never after a TPM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [COPY, Wish(place=KeyPlace.TSS2)], ids=["persistent", "file"])
def test_a_device_that_had_a_tpm_gets_no_software_key_when_that_is_gone(soft: SoftBench, wish: Wish) -> None:
    soft.attested.run(wish=wish)
    before = soft.attested.files()
    with pytest.raises(IdentityError, match="holds the identity of a device with a TPM, and there is no TPM"):
        soft.run()
    for left in ("identity.json", "attestation.key.json"):
        (soft.folder / left).unlink()
        if left == "identity.json" or wish.place is KeyPlace.TSS2:
            with pytest.raises(IdentityError, match="holds the identity of a device with a TPM"):
                soft.run()
    assert before["device.cert.pem"] == (soft.folder / CERTIFICATE).read_bytes()


def test_an_unfinished_first_boot_with_a_tpm_is_not_finished_without(soft: SoftBench) -> None:
    with pytest.raises(PeerUnreachableError):
        soft.attested.run(world=World(), ca_url="https://127.0.0.1:1")
    (soft.folder / "first-boot.json").write_text("{}")
    with pytest.raises(IdentityError):
        soft.run()


def test_the_ca_gives_a_device_that_had_a_tpm_no_certificate_without(soft: SoftBench) -> None:
    """The disk is new and the TPM away: nobody here remembers, but the CA does."""
    soft.attested.run()
    soft.attested.wipe()
    with pytest.raises(TokenRefusedError):
        soft.run()
    entry = soft.attested.last_audit()
    assert (entry.subject, entry.detail["check"]) == (DEVICE, 8)
    assert not (soft.folder / "identity.json").exists()
    assert not (soft.folder / CERTIFICATE).exists()


def test_a_release_of_the_device_s_tpm_does_not_open_the_way(soft: SoftBench) -> None:
    """It lets another TPM take the name, and nothing less."""
    soft.attested.run()
    soft.attested.wipe()
    with soft.attested.registrar.authority.database.writing() as connection:
        bindings.release(connection, DEVICE, now=soft.attested.registrar.clock())
    with pytest.raises(TokenRefusedError):
        soft.run()
    assert soft.attested.last_audit().detail["check"] == 8


def test_the_ca_renews_no_software_key_of_a_device_that_has_a_tpm_since(enrolled: SoftBench) -> None:
    other = enrolled.folder.with_name("with-tpm")
    run_with_tpm(replace(enrolled.attested.settings, folder=other), World())
    before = enrolled.attested.files()
    with pytest.raises(RequestRefusedError):
        enrolled.attested.renew()
    assert enrolled.attested.files() == before


def test_a_tpm_that_holds_an_identity_is_not_worked_around(enrolled: SoftBench, tmp_path: Path) -> None:
    kept = enrolled.folder.rename(tmp_path / "kept")
    enrolled.attested.run()
    enrolled.attested.wipe()
    kept.rename(enrolled.folder)
    enrolled.tcti = enrolled.attested.tpm.tcti
    with pytest.raises(IdentityError, match="has a software key, but this machine's TPM holds the identity of") as told:
        enrolled.run()
    assert "without --no-tpm" in told.value.hint


def test_a_tpm_that_appears_later_changes_nothing_by_itself(enrolled: SoftBench) -> None:
    enrolled.tcti = "nonsense"
    with pytest.raises(TctiInvalidError):
        enrolled.run()
    enrolled.tcti = enrolled.attested.tpm.tcti
    outcome = enrolled.run()
    assert outcome is not None
    assert not outcome.record.is_tpm
    with pytest.raises(IdentityError, match="has a software key, enrolled where there was no TPM") as told:
        enrolled.attested.run()
    assert "--no-tpm=soft" in told.value.hint


def test_a_tpm_that_may_not_be_used_is_a_tpm(soft: SoftBench, tmp_path: Path) -> None:
    soft.kernel.mkdir()
    soft.tcti = f"device:{tmp_path}/tpmrm0"
    outcome = soft.run()
    assert outcome is not None  # the kernel knows of none
    soft.attested.wipe()
    (soft.kernel / "tpm0").mkdir()
    with pytest.raises(TpmUnavailableError, match="there is no TPM at") as told:
        soft.run()
    assert told.value.hint.startswith("there is a TPM, so no software key takes its place; ")
    soft.tcti = "nonsense"
    with pytest.raises(TctiInvalidError):
        soft.run()


# -- what it needs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_file": None}, "only a token convinces the CA"),
        ({"wish": Wish(evidence=True)}, "does not take --evidence"),
        ({"wish": Wish(algorithm=KeyAlgorithm.RSA_2048)}, "does not take another --algorithm"),
        ({"auth": "file:x"}, "does not take --auth"),
        ({"policy": PolicyWish()}, "does not take a policy"),
    ],
)
def test_what_only_a_tpm_can_give_is_refused_before_anything_is_made(
    soft: SoftBench, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        soft.run(**({"token_file": soft.token()} | changes))
    assert list(soft.folder.iterdir()) == []


def test_a_wrong_token_or_an_unreachable_ca_leaves_no_identity(soft: SoftBench) -> None:
    with pytest.raises(PeerUnreachableError):
        soft.run(ca_url="https://127.0.0.1:1", token_file=soft.token())
    assert list(soft.folder.iterdir()) == []
    wrong = soft.token()
    wrong.write_text(f"{DEVICE}:wrong\n")
    with pytest.raises(TokenRefusedError):
        soft.run(token_file=wrong)
    assert [path.name for path in soft.folder.iterdir()] == ["device.key.pem"]  # for the next attempt
    soft.run()
    soft.assert_whole()


def test_a_key_that_others_can_read_is_not_used(enrolled: SoftBench) -> None:
    key = enrolled.folder / "device.key.pem"
    key.chmod(0o640)
    with pytest.raises(StorageError, match="can be read by other users"):
        enrolled.run()
    key.chmod(0o600)
    write_software_key(key, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(CertificateMismatchError):
        enrolled.run()


# -- every command copes ----------------------------------------------------------------------------------------------


def test_status_and_show_say_that_there_is_no_tpm(enrolled: SoftBench, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ((), ("--verify",)):
        assert run(enrolled.command("status", "--json", *options)) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["state"], found["is_tpm"], found["problems"]) == ("enrolled", False, [])
        assert (found["tpm_vendor"], found["ek_sha256"], found["mirror"]) == (None, None, None)
    assert run(enrolled.command("status")) == 0
    assert "the key is a software key, which can be copied" in capsys.readouterr().out
    assert run(["keygen", "show", "--key", str(enrolled.folder / "device.key.pem")]) == 0
    assert "software key: it can be copied" in capsys.readouterr().out
    assert run(["keygen", "show", "--key", str(enrolled.folder / "device.key.pem"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["algorithm"] == "ecc-p256"


def test_an_encrypted_software_key_is_not_guessed_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key.pem"
    path.write_text(
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes128", "-pass", "pass:x")
    )
    assert run(["keygen", "show", "--key", str(path)]) == 5
    assert "is an encrypted software key" in capsys.readouterr().err


def test_status_notices_a_key_that_is_not_the_certificate_s(
    enrolled: SoftBench, capsys: pytest.CaptureFixture[str]
) -> None:
    write_software_key(enrolled.folder / "device.key.pem", ec.generate_private_key(ec.SECP256R1()))
    assert run(enrolled.command("status", "--json")) == 0
    assert "belongs to another key" in json.loads(capsys.readouterr().out)["problems"][0]


def test_nothing_is_restored_from_a_tpm_that_it_never_had(enrolled: SoftBench) -> None:
    (enrolled.folder / CERTIFICATE).unlink()
    with pytest.raises(IdentityError, match="is not a TPM's: nobody has a copy"):
        restore(enrolled.folder, NOWHERE, World())


# -- renewal ----------------------------------------------------------------------------------------------------------


def test_it_renews_with_its_certificate_and_without_a_tpm(enrolled: SoftBench) -> None:
    before = enrolled.attested.leaf()
    assert not enrolled.attested.renew(only_if_due=True).changed
    outcome = enrolled.attested.renew()
    assert (outcome.changed, outcome.rotated) == (True, False)
    after = enrolled.attested.leaf()
    assert certificate_spki(after) == certificate_spki(before)
    assert after.serial_number != before.serial_number
    due = due_at(after)
    assert enrolled.attested.renew(World(now=lambda: due - timedelta(seconds=1)), only_if_due=True).changed is False
    enrolled.assert_whole()


def test_its_key_can_be_rotated(enrolled: SoftBench, capsys: pytest.CaptureFixture[str]) -> None:
    before = enrolled.attested.leaf()
    assert run(enrolled.command("renew", "--rotate-key", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["rotated"] is True
    assert certificate_spki(enrolled.attested.leaf()) != certificate_spki(before)
    enrolled.assert_whole()


def test_an_expired_certificate_renews_nothing(enrolled: SoftBench) -> None:
    late = enrolled.attested.leaf().not_valid_after_utc + timedelta(days=1)
    with pytest.raises(CertificateExpiredError) as told:
        enrolled.attested.renew(World(now=lambda: late))
    assert "cannot vouch for its own renewal" in told.value.hint


@pytest.mark.parametrize("at", range(9))
def test_a_rotation_killed_at_any_change_of_a_file_leaves_one_whole_identity(enrolled: SoftBench, at: int) -> None:
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(enrolled.folder), str(at)]
    subprocess.run([*command, *enrolled.command("renew", "--rotate-key")], check=False, capture_output=True, timeout=60)
    if at % 2:  # whichever comes next finishes it
        enrolled.attested.renew(only_if_due=True)
    else:
        assert enrolled.run() is not None
    assert not (enrolled.folder / INSTALL).exists()
    enrolled.assert_whole()


@pytest.mark.parametrize("at", range(5))
def test_an_enrollment_killed_at_any_change_of_a_file_is_finished_by_the_next(soft: SoftBench, at: int) -> None:
    token = str(soft.token())
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(soft.folder), str(at)]
    arguments = soft.command("first-boot", "--token-file", token, "--no-tpm=soft")
    subprocess.run([*command, *arguments], check=False, capture_output=True, timeout=60)
    soft.run(token_file=Path(token))
    soft.assert_whole()
