"""First boot and renewal with a key that has a policy: the TPM vouches for it, the CA says which policies it takes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.attested import COPY, DEVICE, AttestedBench
from support.policies import Operator, extend, present_state
from support.power_cut import DIES_AT_FILE_CHANGE
from tpm_mtls.certificates import certificate_spki
from tpm_mtls.cli import run
from tpm_mtls.errors import IdentityError, PolicyRefusedError, RequestRefusedError
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthorize, encode
from tpm_mtls.policy.files import find_policy, policy_path
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.first_boot_folder import KeyPlace
from tpm_mtls_keygen.nv_mirror import find_place, store_mirror
from tpm_mtls_pki import groups
from tpm_mtls_pki.groups import Group

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls_keygen.first_boot_steps import Wish

PCRS = PolicyWish(pcrs="sha256:0,7")
FILE = replace(COPY, place=KeyPlace.TSS2)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


@pytest.fixture
def bench(attested: AttestedBench) -> AttestedBench:
    """A device that the CA knows, and a CA that takes every policy."""
    accept(attested, None)
    return attested


def accept(bench: AttestedBench, policies: frozenset[bytes] | None) -> None:
    with bench.registrar.authority.database.writing() as connection:
        groups.save(connection, Group(groups.DEFAULT, policies=policies), now=bench.registrar.clock())


def assert_whole(bench: AttestedBench) -> None:
    """As `AttestedBench.assert_whole`, with one policy: that of the key."""
    record = bench.record()
    name = bytes.fromhex(record["key_name"])
    policies = [path.name for path in bench.folder.iterdir() if path.name.endswith(".policy.json")]
    assert policies == [policy_path(bench.folder, name).name]
    document = find_policy(name, [bench.folder])
    assert document is not None
    assert not bench.run().changed


@pytest.mark.parametrize("wish", [COPY, FILE], ids=["persistent", "file"])
def test_a_device_enrolls_with_a_key_that_is_bound_to_what_it_booted(bench: AttestedBench, wish: Wish) -> None:
    outcome = bench.run(wish=wish, policy=PCRS)

    assert outcome.record.device == DEVICE
    assert_whole(bench)
    bench.renew()
    assert_whole(bench)


def test_the_ca_takes_only_the_policies_that_it_was_told_of(attested: AttestedBench) -> None:
    with pytest.raises(RequestRefusedError, match="refused the evidence"):
        attested.run(policy=PCRS)
    assert attested.last_audit().detail["check"] == 5

    accept(attested, frozenset({policy_digest(present_state(attested.tpm, "sha256:0,7").pcrs)}))
    attested.run(policy=PCRS)

    assert_whole(attested)


def test_what_an_operator_will_sign_is_one_policy_for_the_whole_fleet(
    attested: AttestedBench, operator: Operator
) -> None:
    accept(attested, frozenset({policy_digest([operator.authorize(b"web")])}))
    wish = PolicyWish(signer=operator.signer, policy_ref=b"web")
    with pytest.raises(PolicyRefusedError, match="a key with this policy could not be used now: there is no policy"):
        attested.run(policy=wish)
    assert [each for each in attested.tpm.handles("persistent") if each > "0x81000001"] == []
    policy = (*present_state(attested.tpm).pcrs, not_beyond(DEFAULT_COUNTER, 1))
    signed = operator.sign(*policy, version=1, policy_ref=b"web")
    (attested.folder / "1.signed-policy.json").write_bytes(encode(signed))

    attested.run(policy=wish)

    document = find_policy(bytes.fromhex(attested.record()["key_name"]), [attested.folder])
    assert document is not None
    assert isinstance(document.policy[0], PolicyAuthorize)


@pytest.mark.parametrize("wish", [COPY, FILE], ids=["persistent", "file"])
def test_a_renewal_with_a_new_key_keeps_the_policy(bench: AttestedBench, wish: Wish) -> None:
    bench.run(wish=wish, policy=PCRS)
    before, old = bench.leaf(), find_policy(bytes.fromhex(bench.record()["key_name"]), [bench.folder])

    bench.renew(rotate_key=True)

    assert_whole(bench)
    new = find_policy(bytes.fromhex(bench.record()["key_name"]), [bench.folder])
    assert new is not None
    assert old is not None
    assert new.policy == old.policy
    assert certificate_spki(bench.leaf()) != certificate_spki(before)


def test_a_renewal_that_fails_leaves_no_policy_of_a_key_that_nobody_has(bench: AttestedBench) -> None:
    bench.run(policy=PCRS)
    accept(bench, frozenset({b""}))
    with pytest.raises(RequestRefusedError):
        bench.renew(rotate_key=True)
    accept(bench, None)
    assert_whole(bench)


def test_after_another_boot_the_ca_cannot_be_asked(bench: AttestedBench) -> None:
    bench.run(policy=PCRS)
    extend(bench.tpm)
    with pytest.raises(PolicyRefusedError, match="policy"):
        bench.renew()
    bench.tpm.restart()
    bench.renew()
    assert_whole(bench)


def test_the_policy_comes_back_with_the_identity(bench: AttestedBench) -> None:
    bench.run(policy=PCRS)
    bench.wipe()

    assert bench.run(policy=PCRS).restored

    assert_whole(bench)
    bench.renew()


def test_an_identity_whose_policy_is_lost_or_changed_does_not_come_back(bench: AttestedBench) -> None:
    bench.run(policy=PCRS)
    with open_tpm(bench.tpm.tcti) as tpm:
        place = find_place(tpm, bench.folder)
        assert place.mirror is not None
        assert place.mirror.policy is not None
        other = msgspec.structs.replace(place.mirror.policy, policy=place.mirror.policy.policy * 2)
        bench.wipe()
        for policy, message in ((None, "the policy of its key .* is gone"), (other, "leads to another authPolicy")):
            store_mirror(tpm, find_place(tpm, bench.folder), msgspec.structs.replace(place.mirror, policy=policy))
            with pytest.raises(IdentityError, match=message):
                bench.run(policy=PCRS)


def test_a_key_whose_policy_is_lost_cannot_sign(bench: AttestedBench) -> None:
    bench.run(policy=PCRS)
    policy_path(bench.folder, bytes.fromhex(bench.record()["key_name"])).unlink()
    with pytest.raises(PolicyRefusedError, match="takes no authorization value, only its policy, and none was found"):
        bench.renew()


def test_killed_between_journal_policy_and_key_the_next_run_finishes(bench: AttestedBench) -> None:
    """As a power cut would, before the policy has its name and, in the next run, before the key file has."""
    options = ("--key", "tss2", "--pcrs", "sha256:0,7", "--no-mirror")
    left = []
    for change in (2, 4):
        command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(bench.folder), str(change)]
        died = subprocess.run(
            [*command, *bench.command("first-boot", *options)], capture_output=True, check=False, timeout=60
        )
        assert died.returncode == -signal.SIGKILL
        bench.tpm.flush()
        left.append({re.sub(r"[0-9a-f]{8,}", "…", path.name) for path in bench.folder.iterdir()})
    assert left == [
        {"first-boot.json", ".….policy.json.….tmp"},
        {"first-boot.json", "….policy.json", ".device.key.pem.….tmp"},
    ]

    assert run(bench.command("first-boot", *options)) == 0

    names = {path.name for path in bench.folder.iterdir()}
    assert {name for name in names if name.endswith(".policy.json")} == {f"{bench.record()['key_name']}.policy.json"}
    assert not any(name.startswith(".") for name in names)
