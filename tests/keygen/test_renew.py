"""Renewal: another certificate on the same evidence, with or without a new key; the old identity until the new one."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.attested import COPY, DEVICE, AttestedBench
from support.authority import est_host, make_token
from support.certificates import TestCa
from support.other_user import give, needs_root, not_given
from support.power_cut import DIES_AT_FILE_CHANGE, TpmTap
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.cli import run
from tpm_mtls.device_requests import DeviceTransport
from tpm_mtls.errors import (
    AuthorizationError,
    CertificateExpiredError,
    ForeignKeyError,
    HandshakeError,
    IdentityError,
    PeerUnreachableError,
    RequestRefusedError,
)
from tpm_mtls.identity import CERTIFICATE, Identity, load_record
from tpm_mtls.structures import Attribute
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen import trial
from tpm_mtls_keygen.est_client import EstExchange
from tpm_mtls_keygen.est_url import EstUrl
from tpm_mtls_keygen.first_boot_folder import INSTALL, Journal, KeyPlace, save_journal
from tpm_mtls_keygen.first_boot_settings import World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.install import Installation, begin
from tpm_mtls_keygen.issued import due_at
from tpm_mtls_keygen.nv_mirror import find_place
from tpm_mtls_keygen.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_pki.issuance import Registrar

FILE = Wish(place=KeyPlace.TSS2, copy=True)


@needs_root
def test_what_root_does_by_hand_in_the_services_folder_the_service_can_go_on_with(attested: AttestedBench) -> None:
    """First boot, renewal with a new key and restoring: all files are the user's whose folder it is."""
    give(attested.folder)
    attested.run(wish=FILE)
    attested.renew(rotate_key=True)
    assert run(attested.command("restore")) == 0
    (attested.folder / CERTIFICATE).unlink()
    assert run(attested.command("restore")) == 0
    assert (attested.folder / CERTIFICATE).exists()
    assert not not_given(attested.folder)


@pytest.fixture(params=[COPY, FILE], ids=["persistent", "file"])
def enrolled(request: pytest.FixtureRequest, attested: AttestedBench) -> AttestedBench:
    attested.run(wish=request.param)
    return attested


@pytest.fixture
def persistent(attested: AttestedBench) -> AttestedBench:
    attested.run()
    return attested


def mirrored_leaf(bench: AttestedBench) -> bytes:
    with open_tpm(bench.tpm.tcti) as tpm:
        mirror = find_place(tpm, bench.folder).mirror
    assert mirror is not None
    return mirror.certificates[0]


def test_the_same_key_gets_another_certificate(enrolled: AttestedBench) -> None:
    before = enrolled.leaf()

    outcome = enrolled.renew()

    assert outcome.changed
    assert enrolled.leaf().serial_number != before.serial_number
    assert certificate_spki(enrolled.leaf()) == certificate_spki(before)
    assert enrolled.issued() == sorted(["attestation", "device"] * 2)
    enrolled.assert_whole()


def test_a_new_key_takes_the_place_of_the_old_one(enrolled: AttestedBench) -> None:
    before, old = enrolled.leaf(), enrolled.record()

    outcome = enrolled.renew(rotate_key=True)

    assert certificate_spki(enrolled.leaf()) != certificate_spki(before)
    assert enrolled.record() == old | {"key_name": outcome.record.key_name}
    assert outcome.record.key_name != old["key_name"]
    enrolled.assert_whole()


def test_the_mirror_follows(enrolled: AttestedBench) -> None:
    enrolled.renew(rotate_key=True)
    leaf = enrolled.leaf()
    enrolled.wipe()

    assert enrolled.run().restored
    assert enrolled.leaf() == leaf
    enrolled.assert_whole()


def test_without_a_mirror_none_is_made(attested: AttestedBench) -> None:
    attested.run(wish=Wish())
    attested.renew()
    assert attested.tpm.handles("nv-index") == []


def test_the_attestation_key_gets_another_certificate_too(persistent: AttestedBench) -> None:
    before = load_attestation_key(persistent.folder)
    persistent.renew()
    after = load_attestation_key(persistent.folder)

    assert before is not None
    assert after is not None
    assert (after.public, after.private) == (before.public, before.private)
    assert after.certificate not in {None, before.certificate}


def test_a_token_s_device_renews_without_evidence(attested: AttestedBench, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"plain:{make_token(attested.registrar, 'plain')}\n")
    token.chmod(0o600)
    attested.run(token_file=token)

    attested.renew()

    assert attested.issued() == ["device", "device"]


def test_a_key_with_an_authorization_value_needs_it_and_hands_it_on(attested: AttestedBench, tmp_path: Path) -> None:
    secret = tmp_path / "auth"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    attested.run(auth=f"file:{secret}")

    with pytest.raises(AuthorizationError):
        attested.renew()
    attested.renew(auth=f"file:{secret}", rotate_key=True)

    with open_tpm(attested.tpm.tcti) as tpm:
        assert Attribute.NODA not in tpm.read_public(0x81000100).public.attributes
    attested.renew(auth=f"file:{secret}")
    attested.assert_whole()


def test_it_does_nothing_before_it_is_due(persistent: AttestedBench) -> None:
    leaf = persistent.leaf()

    assert not persistent.renew(only_if_due=True).changed
    assert persistent.leaf() == leaf
    due = due_at(leaf)
    assert due - leaf.not_valid_before_utc == (leaf.not_valid_after_utc - leaf.not_valid_before_utc) * 2 / 3
    assert persistent.renew(World(now=lambda: due - timedelta(seconds=1)), only_if_due=True).changed is False


def test_an_expired_certificate_renews_nothing(persistent: AttestedBench) -> None:
    end = persistent.leaf().not_valid_after_utc

    with pytest.raises(CertificateExpiredError) as refusal:
        persistent.renew(World(now=lambda: end + timedelta(days=1)))
    assert "first-boot --new-identity" in refusal.value.hint


def test_without_an_identity_there_is_nothing_to_renew(attested: AttestedBench) -> None:
    with pytest.raises(IdentityError, match=r"there is no identity in .* to renew"):
        attested.renew()
    attested.folder.mkdir()
    with pytest.raises(IdentityError, match=r"there is no identity in .* to renew"):
        attested.renew()


def test_an_unfinished_first_boot_is_finished_first(persistent: AttestedBench) -> None:
    said = persistent.record()
    journal = {name: said[name] for name in ("key", "algorithm", "key_name", "srk_name")}
    save_journal(persistent.folder, Journal(**journal))

    with pytest.raises(IdentityError, match=r"first boot in .* is not finished"):
        persistent.renew()
    persistent.run()
    persistent.renew()


def test_a_revoked_device_is_refused_and_keeps_what_it_has(persistent: AttestedBench) -> None:
    persistent.revoke()
    before = persistent.files()

    with pytest.raises(RequestRefusedError, match="refused"):
        persistent.renew()
    assert persistent.files() == before


def test_a_ca_that_is_away_is_waited_for(persistent: AttestedBench) -> None:
    path = persistent.folder / "identity.json"
    right = path.read_text()
    path.write_text(right.replace(persistent.host.url, "https://127.0.0.1:1"))
    told: list[str] = []
    slept: list[float] = []
    patience = Patience(seconds=0.1, monotonic=lambda: sum(slept), sleep=slept.append)

    with pytest.raises(PeerUnreachableError):
        persistent.renew(World(patience=patience, tell=told.append))
    assert slept == [0.1]
    assert any("trying again in" in line for line in told)


def test_a_renewal_that_was_interrupted_is_finished_even_if_none_is_due(persistent: AttestedBench) -> None:
    record = load_record(persistent.folder)
    assert record is not None
    certificates = (persistent.folder / CERTIFICATE).read_bytes()
    begin(persistent.folder, Installation(record=record, certificates=certificates))

    assert persistent.renew(only_if_due=True).changed
    assert not (persistent.folder / INSTALL).exists()


def test_a_moved_key_is_told_before_anybody_is_asked(persistent: AttestedBench) -> None:
    persistent.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(IdentityError, match="is gone"):
        persistent.renew()


def test_an_unreachable_ca_leaves_everything_as_it_is(attested: AttestedBench) -> None:
    attested.run()
    path = attested.folder / "identity.json"
    path.write_text(path.read_text().replace(attested.host.url, "https://127.0.0.1:1"))
    before = attested.files()

    with pytest.raises(PeerUnreachableError):
        attested.renew(rotate_key=True)
    assert attested.files() == before
    assert attested.tpm.handles("transient") == []


def test_the_command_line(persistent: AttestedBench, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(persistent.command("renew", "--if-due")) == 0
    assert capsys.readouterr().out == f"nothing to renew yet: {DEVICE}\n"
    for option in ("--rotate-key", "--new-key"):  # the second is its older name
        assert run(persistent.command("renew", option, "--json")) == 0
        assert '"changed":true,"rotated":true' in capsys.readouterr().out
    assert run(persistent.command("status", "--verify")) == 0
    assert "mirror in the tpm: current" in capsys.readouterr().out


# -- the trial --------------------------------------------------------------------------------------------------------


def world_that_breaks_the_trial(change: Callable[[], object]) -> World:
    """``change`` happens when the new key is about to be tried."""

    def tell(line: str) -> None:
        if line.startswith("trying the new key"):
            change()

    return World(tell=tell)


def test_a_new_key_that_does_not_load_replaces_nothing(persistent: AttestedBench) -> None:
    before, record = persistent.leaf(), persistent.record()
    world = world_that_breaks_the_trial(lambda: persistent.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001"))
    with pytest.raises(ForeignKeyError, match="its parent is not in this TPM") as refusal:
        persistent.renew(world, rotate_key=True)
    assert refusal.value.hint.startswith("the old key stays in use; ")
    assert (persistent.leaf(), persistent.record()) == (before, record)
    with open_tpm(persistent.tpm.tcti) as tpm:
        tpm.srk.ensure()
    persistent.renew()
    persistent.assert_whole()


def test_a_ca_that_is_gone_when_the_new_key_is_tried_replaces_nothing(
    tpm: SimulatedTpm, registrar: Registrar, tmp_path: Path
) -> None:
    with ExitStack() as running:
        host = running.enter_context(est_host(registrar))
        bench = AttestedBench(tpm, registrar, host, tmp_path / "state")
        bench.allow()
        bench.run()
        before = bench.files()
        with pytest.raises(PeerUnreachableError):
            bench.renew(world_that_breaks_the_trial(running.close), rotate_key=True)
    assert bench.files() == before
    assert tpm.handles("transient") == []


def test_a_certificate_of_another_ca_does_not_pass_the_trial(persistent: AttestedBench, tmp_path: Path) -> None:
    """Whoever fails here has signed for nothing that the CA accepts: it is the CA that verifies, in the handshake."""
    stranger = TestCa(tmp_path).software_identity("sensor-17")
    identity = Identity(stranger.key, stranger.certificate, persistent.trust)
    url = EstUrl.parse(persistent.host.url)
    exchange = EstExchange(url, DeviceTransport(url.server, identity))
    with pytest.raises(HandshakeError, match="unknown ca"):
        trial.attempt(exchange, now=datetime.now(UTC))


# -- killed anywhere --------------------------------------------------------------------------------------------------


def finish(bench: AttestedBench) -> None:
    """The next first boot, at the next boot, leaves one whole identity; and renewal goes on from there."""
    bench.tpm.flush()
    bench.run()
    bench.assert_whole()
    assert mirrored_leaf(bench) == bench.leaf().public_bytes(Encoding.DER)
    bench.renew(rotate_key=True)
    bench.assert_whole()


def killed_at_file_change(bench: AttestedBench, at: int) -> None:
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(bench.folder), str(at)]
    subprocess.run([*command, *bench.command("renew", "--rotate-key")], check=False, capture_output=True, timeout=60)


TRIAL = 4
"""Changes of files before the installation: key and certificate for the trial, and their removal."""


@pytest.mark.parametrize("at", range(TRIAL + 1))
def test_killed_during_the_trial_it_is_the_old_one(persistent: AttestedBench, at: int) -> None:
    before = persistent.leaf(), persistent.record()
    killed_at_file_change(persistent, at)
    assert (persistent.leaf(), persistent.record()) == before
    assert not (persistent.folder / INSTALL).exists()
    persistent.tpm.flush()
    persistent.renew()  # the old key still works, and what the trial left is gone
    persistent.assert_whole()


@pytest.mark.parametrize("at", range(TRIAL, TRIAL + 7))
def test_killed_before_any_change_of_a_file_it_is_the_old_or_the_new_one(enrolled: AttestedBench, at: int) -> None:
    """install.json, the key (if it is a file), attestation key, certificate, identity, install.json's removal."""
    killed_at_file_change(enrolled, at)
    finish(enrolled)


INSTALLATION = [
    *("ReadPublic", "Load", "EvictControl", "EvictControl", "FlushContext"),  # the new key for the old one
    *("GetCapability", "NV_ReadPublic", "NV_Read", "NV_Read", "NV_Read"),  # the mirror as it was
    *("GetCapability", "NV_ReadPublic", "NV_ReadPublic", "NV_Write", "NV_Write", "NV_Write"),
]


def start_renewal(bench: AttestedBench, tap: TpmTap) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tpm_mtls", *bench.command("renew", "--rotate-key", "--tcti", tap.tcti)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


TRYING = [
    *("GetCapability", "GetCapability", "GetCapability", "ReadPublic", "Load"),  # the new key in a child
    *("ECC_Parameters", "ECC_Parameters", "Hash", "Sign", "FlushContext"),
]


def test_the_new_key_is_tried_and_takes_over_with_few_commands(persistent: AttestedBench) -> None:
    with TpmTap(persistent.tpm.tcti) as tap:
        assert start_renewal(persistent, tap).wait(60) == 0
        assert tap.commands[-len(TRYING + INSTALLATION) :] == TRYING + INSTALLATION


@pytest.mark.parametrize("left", range(len(INSTALLATION)))
def test_killed_at_any_tpm_command_of_the_installation(persistent: AttestedBench, left: int) -> None:
    """Where nobody can go back any more, the next first boot goes on; ``left`` commands before the end."""
    with TpmTap(persistent.tpm.tcti) as tap:
        assert start_renewal(persistent, tap).wait(60) == 0
        total = len(tap.commands)
    with TpmTap(persistent.tpm.tcti) as tap:
        process = start_renewal(persistent, tap)
        tap.kill(process, at=total - left, answered=bool(left % 2))
        process.wait(60)

    assert (persistent.folder / INSTALL).exists()
    persistent.tpm.flush()
    persistent.run()
    persistent.assert_whole()
    assert mirrored_leaf(persistent) == persistent.leaf().public_bytes(Encoding.DER)


@pytest.mark.parametrize("name", ["Load", "Sign", "FlushContext"])
def test_killed_at_a_tpm_command_of_the_trial_it_is_the_old_one(persistent: AttestedBench, name: str) -> None:
    with TpmTap(persistent.tpm.tcti) as tap:
        assert start_renewal(persistent, tap).wait(60) == 0
        begins = len(tap.commands) - len(TRYING + INSTALLATION)
    before = persistent.leaf(), persistent.record()
    with TpmTap(persistent.tpm.tcti) as tap:
        process = start_renewal(persistent, tap)
        tap.kill(process, at=begins + TRYING.index(name) + 1, answered=True)
        process.wait(60)

    persistent.tpm.flush()
    assert (persistent.leaf(), persistent.record()) == before
    assert not (persistent.folder / INSTALL).exists()
    persistent.renew()
    persistent.assert_whole()
