"""First boot's rules: from every set of facts to the end, or to an error with a name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tpm_mtls.errors import (
    CertificateExpiredError,
    HandleOccupiedError,
    IdentityError,
    StateError,
)
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, IdentityRecord
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls_keygen.first_boot import next_step
from tpm_mtls_keygen.first_boot_folder import Journal, KeyPlace
from tpm_mtls_keygen.first_boot_steps import (
    ContactCa,
    Copy,
    Done,
    Enroll,
    Facts,
    Forget,
    KeyPlan,
    MakeAttestationKey,
    MakeKey,
    MakeStorageKey,
    Record,
    Restore,
    Step,
    Tidy,
    Wish,
)
from tpm_mtls_keygen.keys import FIRST_HANDLE, LAST_HANDLE
from tpm_mtls_keygen.nv_mirror import Mirror

EMPTY = Facts("/state", certificate_error=None)
UNFIT = IdentityError("there is no certificate", hint="-")
HANDLE = "handle:0x81000100"


def journal(key: str = HANDLE, *, name: str = "k1", srk: str = "s1") -> Journal:
    return Journal(key=key, algorithm=KeyAlgorithm.ECC_P256, key_name=name, srk_name=srk)


def record(key: str = HANDLE, *, name: str = "k1", srk: str = "s1") -> IdentityRecord:
    return IdentityRecord(
        device="sensor-17",
        key=key,
        algorithm="ecc-p256",
        key_name=name,
        srk_name=srk,
        tpm_vendor="IBM",
        tpm_firmware="1.2.3.4",
        reset_count=1,
        ca_url="https://ca.example:443",
        enrolled_by="token",
    )


def test_a_new_device_asks_the_ca_before_it_makes_anything() -> None:
    assert next_step(EMPTY, Wish()) == ContactCa()


def test_then_it_makes_the_storage_root_key_if_there_is_none() -> None:
    assert next_step(replace(EMPTY, ca_known=True), Wish()) == MakeStorageKey()


def test_then_a_p256_key_at_the_first_free_handle() -> None:
    facts = replace(EMPTY, ca_known=True, srk_name="s1", handles={0x81000001, FIRST_HANDLE})

    assert next_step(facts, Wish()) == MakeKey(KeyPlan(KeyAlgorithm.ECC_P256, FIRST_HANDLE + 1), "s1")


def test_or_the_key_that_was_wished_for() -> None:
    facts = replace(EMPTY, ca_known=True, srk_name="s1")

    in_file = next_step(facts, Wish(place=KeyPlace.TSS2, algorithm=KeyAlgorithm.RSA_2048))
    at_handle = next_step(facts, Wish(handle=0x81000200))

    assert in_file == MakeKey(KeyPlan(KeyAlgorithm.RSA_2048, None), "s1")
    assert at_handle == MakeKey(KeyPlan(KeyAlgorithm.ECC_P256, 0x81000200), "s1")


def test_a_handle_that_is_taken_is_refused_before_the_ca_is_asked() -> None:
    with pytest.raises(HandleOccupiedError, match="something else at handle:0x81000200") as refusal:
        next_step(replace(EMPTY, handles={0x81000200}), Wish(handle=0x81000200))

    assert refusal.value.handle == 0x81000200


def test_a_tpm_without_a_free_handle_is_refused() -> None:
    with pytest.raises(HandleOccupiedError, match="all handles from 0x81000100 to 0x8100ffff are taken"):
        next_step(replace(EMPTY, handles=set(range(FIRST_HANDLE, LAST_HANDLE + 1))), Wish())


@pytest.mark.parametrize("name", [KEY, CERTIFICATE])
def test_files_of_unknown_origin_are_not_overwritten(name: str) -> None:
    with pytest.raises(IdentityError, match="whose it is cannot be told"):
        next_step(replace(EMPTY, files={name}), Wish())


def test_a_key_that_is_there_is_enrolled() -> None:
    facts = replace(EMPTY, journal=journal(), key_name="k1", srk_name="s1", certificate_error=UNFIT)

    assert next_step(facts, Wish()) == ContactCa()
    assert next_step(replace(facts, ca_known=True), Wish()) == Enroll(journal())


def test_a_certificate_that_is_there_is_recorded_without_asking_the_ca_again() -> None:
    facts = replace(EMPTY, journal=journal(), key_name="k1", srk_name="s1", files={CERTIFICATE})

    assert next_step(facts, Wish()) == Record(journal(), "s1")


def test_a_key_that_was_announced_but_never_made_is_made_anew_as_it_was_wanted() -> None:
    begun = Journal(key=KEY, algorithm=KeyAlgorithm.RSA_2048, key_name="k1", srk_name="s1")
    facts = replace(EMPTY, journal=begun, srk_name="s1", ca_known=True)

    assert next_step(facts, Wish()) == MakeKey(KeyPlan(KeyAlgorithm.RSA_2048, None), "s1")
    assert next_step(facts, Wish(place=KeyPlace.PERSISTENT)) == MakeKey(
        KeyPlan(KeyAlgorithm.RSA_2048, FIRST_HANDLE), "s1"
    )


def test_somebody_else_s_object_at_the_announced_handle_stays_and_another_handle_is_taken() -> None:
    facts = replace(EMPTY, journal=journal(), key_name="foreign", srk_name="s1", handles={FIRST_HANDLE}, ca_known=True)

    assert next_step(facts, Wish()) == MakeKey(KeyPlan(KeyAlgorithm.ECC_P256, FIRST_HANDLE + 1), "s1")


def test_somebody_else_s_file_in_the_key_s_place_is_not_overwritten() -> None:
    facts = replace(EMPTY, journal=journal(KEY), key_name="foreign", srk_name="s1")

    with pytest.raises(IdentityError, match=r"/state/device.key.pem is not the key that first-boot.json speaks of"):
        next_step(facts, Wish())


@pytest.mark.parametrize(
    ("begun", "key_name"), [(journal(), None), (journal(KEY), None), (journal(KEY), "k1"), (journal(), "foreign")]
)
def test_a_first_boot_that_began_on_another_tpm_is_not_continued(begun: Journal, key_name: str | None) -> None:
    facts = replace(EMPTY, journal=begun, key_name=key_name, srk_name="s2")

    with pytest.raises(IdentityError, match="began on another TPM, or this one was cleared since"):
        next_step(facts, Wish())


def test_a_persistent_key_with_the_right_name_needs_no_storage_root_key() -> None:
    facts = replace(EMPTY, journal=journal(), key_name="k1", srk_name="s2")

    assert next_step(facts, Wish()) == Record(journal(), "s2")


def test_a_key_file_gets_its_storage_root_key_back_before_it_is_recorded() -> None:
    facts = replace(EMPTY, journal=journal(KEY), key_name="k1", srk_name=None)

    assert next_step(facts, Wish()) == ContactCa()
    assert next_step(replace(facts, ca_known=True), Wish()) == MakeStorageKey()
    assert next_step(replace(facts, ca_known=True, srk_name="s1"), Wish()) == Record(journal(KEY), "s1")


CONTRADICTIONS = [
    Wish(place=KeyPlace.TSS2),
    Wish(algorithm=KeyAlgorithm.RSA_2048),
    Wish(handle=0x81000200),
]


@pytest.mark.parametrize("wish", CONTRADICTIONS)
def test_options_that_contradict_a_key_that_is_there_are_refused(wish: Wish) -> None:
    facts = replace(EMPTY, journal=journal(), key_name="k1", srk_name="s1")

    with pytest.raises(StateError, match="has the ecc-p256 key handle:0x81000100 already"):
        next_step(facts, wish)


@pytest.mark.parametrize("wish", CONTRADICTIONS)
def test_options_that_contradict_an_identity_are_refused(wish: Wish) -> None:
    with pytest.raises(StateError, match="has the ecc-p256 key handle:0x81000100 already"):
        next_step(replace(EMPTY, record=record(), key_name="k1"), wish)


def test_the_same_options_again_are_fine() -> None:
    wish = Wish(place=KeyPlace.PERSISTENT, algorithm=KeyAlgorithm.ECC_P256, handle=0x81000100)

    assert next_step(replace(EMPTY, record=record(), key_name="k1"), wish) == Done(record())


def test_an_enrolled_device_is_done_and_an_old_journal_goes() -> None:
    facts = replace(EMPTY, record=record(), key_name="k1", srk_name=None)

    assert next_step(facts, Wish()) == Done(record())
    assert next_step(replace(facts, journal=journal()), Wish()) == Tidy()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(EMPTY, srk_name="s1"), "is gone: nothing is there\n"),
        (replace(EMPTY, srk_name="s2"), "is gone: nothing is there; this is another TPM, or it was cleared"),
        (replace(EMPTY, srk_name=None), "is gone: nothing is there; this is another TPM, or it was cleared"),
        (replace(EMPTY, srk_name="s1", key_name="k2"), "is gone: something else is there\n"),
    ],
)
def test_a_lost_persistent_key_is_told_and_never_replaced(facts: Facts, message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        next_step(replace(facts, record=record()), Wish())


def test_a_key_file_on_another_tpm_is_told() -> None:
    facts = replace(EMPTY, record=record(KEY), key_name="k1", srk_name="s2")

    with pytest.raises(IdentityError, match="cannot be loaded: this is another TPM, or it was cleared"):
        next_step(facts, Wish())

    assert next_step(replace(facts, srk_name="s1"), Wish()) == Done(record(KEY))


def test_an_enrolled_device_s_bad_certificate_is_told() -> None:
    expired = CertificateExpiredError("the certificate expired", hint="renew it")

    with pytest.raises(CertificateExpiredError, match="the certificate expired"):
        next_step(replace(EMPTY, record=record(), key_name="k1", certificate_error=expired), Wish())


# -- the TPM's evidence, and the copy in its NV memory ----------------------------------------------------------------

BEGUN = replace(EMPTY, journal=journal(), key_name="k1", srk_name="s1", certificate_error=UNFIT, ca_known=True)
EVIDENCE = Wish(evidence=True)
KEEP = Wish(copy=True)
OCCUPIED = HandleOccupiedError("somebody else is there", hint="-", handle=0x01500000)


def mirror(identity: IdentityRecord | None = None) -> Mirror:
    return Mirror(folder="/state", record=identity or record(), key=None, attestation_key=None, certificates=(b"leaf",))


def test_the_attestation_key_is_made_before_the_ca_is_asked_on_evidence() -> None:
    assert next_step(BEGUN, EVIDENCE) == MakeAttestationKey()
    assert next_step(replace(BEGUN, has_attestation_key=True), EVIDENCE) == Enroll(journal())
    assert next_step(BEGUN, Wish()) == Enroll(journal())


def test_the_copy_is_written_once_after_the_record_and_before_the_journal_goes() -> None:
    facts = replace(EMPTY, record=record(), journal=journal(), key_name="k1")

    assert next_step(facts, KEEP) == Copy(record())
    assert next_step(replace(facts, copied=True), KEEP) == Tidy()
    assert next_step(facts, Wish()) == Tidy()
    assert next_step(replace(facts, journal=None), KEEP) == Done(record())


def test_an_empty_folder_gets_its_identity_back() -> None:
    facts = replace(EMPTY, copy=mirror())

    assert next_step(facts, KEEP) == Restore(mirror())
    assert next_step(facts, Wish()) == ContactCa()  # told not to look
    assert next_step(facts, replace(KEEP, anew=True)) == Forget(mirror())


def test_a_copy_that_will_not_do_is_told_unless_it_is_given_up() -> None:
    facts = replace(EMPTY, copy=mirror(), copy_error=UNFIT)

    with pytest.raises(IdentityError, match="there is no certificate"):
        next_step(facts, KEEP)
    assert next_step(facts, replace(KEEP, anew=True)) == Forget(mirror())


def test_a_folder_of_unknown_origin_is_not_filled_from_the_copy() -> None:
    for wish in (KEEP, replace(KEEP, anew=True)):
        with pytest.raises(IdentityError, match="whose it is cannot be told"):
            next_step(replace(EMPTY, files={ATTESTATION_KEY}, copy=mirror()), wish)


def test_a_place_that_is_taken_is_told_before_anything_is_made() -> None:
    with pytest.raises(HandleOccupiedError, match="somebody else is there"):
        next_step(replace(EMPTY, copy_error=OCCUPIED), KEEP)

    assert next_step(replace(EMPTY, copy_error=OCCUPIED), Wish()) == ContactCa()


def test_options_that_contradict_the_copy_are_refused() -> None:
    with pytest.raises(StateError, match="has the ecc-p256 key handle:0x81000100 already"):
        next_step(replace(EMPTY, copy=mirror()), replace(KEEP, place=KeyPlace.TSS2))


def test_an_unfinished_first_boot_goes_on_unless_the_copy_is_of_the_same_key() -> None:
    other = mirror(record(name="k2"))

    assert next_step(replace(BEGUN, copy=mirror()), KEEP) == Restore(mirror())
    assert next_step(replace(BEGUN, copy=other), KEEP) == Enroll(journal())
    assert next_step(replace(BEGUN, copy=mirror(), copy_error=UNFIT), KEEP) == Enroll(journal())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(EMPTY, srk_name=None, ek_sha256="e1"), "nothing is there; the TPM was cleared\n"),
        (replace(EMPTY, srk_name="s1", ek_sha256="e1"), "nothing is there\n"),
        (replace(EMPTY, srk_name="s2", ek_sha256="e2"), "this is another TPM: it was replaced, or the disk"),
        (replace(EMPTY, srk_name="s1", ek_sha256="e2"), "this is another TPM: it was replaced, or the disk"),
        (
            replace(EMPTY, srk_name="s2", ek_sha256="e2", owner="sensor-18"),
            "the disk of another device, the TPM belongs to sensor-18\n",
        ),
        (replace(EMPTY, srk_name="s1", ek_sha256="e1", owner="sensor-18"), "nothing is there\n"),
        (replace(EMPTY, srk_name="s2", ek_sha256=None), "this is another TPM, or it was cleared\n"),
    ],
)
def test_the_endorsement_key_tells_what_happened(facts: Facts, message: str) -> None:
    lost = msgspec.structs.replace(record(), ek_sha256="e1")

    with pytest.raises(IdentityError, match=message):
        next_step(replace(facts, record=lost), Wish())


# -- any history ------------------------------------------------------------------------------------------------------

_STEPS_ENOUGH = 14
EVERYTHING = Wish(evidence=True, copy=True)


@dataclass
class Device:
    """A model of folder and TPM: names stand for keys, and the certificate is the name of the key it is for."""

    seed: int = 0
    srk: str | None = None
    handles: dict[int, str] = field(default_factory=dict)
    record: IdentityRecord | None = None
    journal: Journal | None = None
    key_file: str | None = None
    certificate: str | None = None
    attestation_key: str | None = None
    copy: Mirror | None = None
    copied: bool = False

    def observe(self, *, ca_known: bool) -> Facts:
        begun = self.record or self.journal
        key_name = None
        if begun is not None:
            key_name = self.key_file if begun.key == KEY else self.handles.get(int(begun.key[-8:], 16))
        files = {KEY} if self.key_file else set()
        files |= {ATTESTATION_KEY} if self.attestation_key else set()
        return Facts(
            "/state",
            certificate_error=None if self.certificate == key_name else UNFIT,
            record=self.record,
            journal=self.journal,
            files=files | ({CERTIFICATE} if self.certificate else set()),
            srk_name=self.srk,
            key_name=key_name,
            handles=frozenset(self.handles),
            ca_known=ca_known,
            has_attestation_key=self.attestation_key is not None,
            copy=self.copy,
            copy_error=UNFIT if self.copy and not self.can_restore(self.copy) else None,
            copied=self.copied,
        )

    def can_restore(self, copy: Mirror) -> bool:
        """Whether the key of ``copy`` is in this TPM, or can be loaded."""
        if copy.record.key == KEY:
            return self.srk == copy.record.srk_name
        return self.handles.get(int(copy.record.key[-8:], 16)) == copy.record.key_name

    def wipe(self) -> None:
        """The disk is new."""
        self.record = self.journal = self.key_file = self.certificate = self.attestation_key = None


class Killed(Exception):  # noqa: N818 - no error: the test's way of pulling the plug
    """The process ends here."""


class AnyHistory(RuleBasedStateMachine):
    """Runs that are killed anywhere, between whatever others do to the TPM."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.names = count(1)
        self.foreign: set[str] = set()
        self.enrolled = 0
        self.made: set[str] = set()
        self.disturbed = False
        self.effects_left: int | None = None

    @rule(
        kill_after=st.none() | st.integers(0, 8),
        wish=st.sampled_from([EVERYTHING, EVERYTHING, Wish(), replace(EVERYTHING, anew=True), *CONTRADICTIONS]),
    )
    def run_first_boot(self, kill_after: int | None, wish: Wish) -> None:
        """It ends as enrolled, by an error with a name, or by being killed; and it never goes round in circles."""
        self.effects_left = kill_after
        self.device.copied = False
        if not wish.copy and self.device.record is None and self.device.copy is not None:
            self.disturbed = True  # told not to look at the copy, whose key then stands for itself
        ca_known = False
        with suppress(Killed, StateError):  # any other class of error would be a wrong one
            for _ in range(_STEPS_ENOUGH):
                step = next_step(self.device.observe(ca_known=ca_known), wish)
                if isinstance(step, Done):
                    assert self.device.journal is None
                    assert self.device.observe(ca_known=False).key_name == step.record.key_name
                    return
                self.take(step)
                ca_known = ca_known or isinstance(step, ContactCa)
            raise AssertionError("it goes round in circles")

    def effect(self) -> None:
        if self.effects_left is not None:
            if self.effects_left == 0:
                raise Killed
            self.effects_left -= 1

    def take(self, step: Step) -> None:
        device = self.device
        match step:
            case ContactCa():
                pass
            case MakeStorageKey():
                self.effect()
                device.srk = f"srk-{device.seed}"
            case MakeKey(plan, srk_name):
                name = f"key-{next(self.names)}"
                place = KEY if plan.handle is None else f"handle:{plan.handle:#010x}"
                self.effect()
                device.journal = Journal(key=place, algorithm=plan.algorithm, key_name=name, srk_name=srk_name)
                self.effect()
                self.made.add(name)
                if plan.handle is None:
                    assert device.key_file is None
                    device.key_file = name
                else:
                    assert plan.handle not in device.handles
                    device.handles[plan.handle] = name
            case MakeAttestationKey():
                self.effect()
                device.attestation_key = device.srk
            case Enroll(begun):
                self.effect()
                device.certificate = begun.key_name
                self.enrolled += 1
            case Record(begun, srk_name):
                assert device.certificate == begun.key_name
                self.effect()
                device.record = record(begun.key, name=begun.key_name, srk=srk_name)
            case Tidy():
                self.effect()
                device.journal = None
            case _:
                self.take_copy_step(step)

    def take_copy_step(self, step: Step) -> None:
        device = self.device
        match step:
            case Copy(identity):
                self.effect()
                device.copy = mirror(identity)
                device.copied = True
            case Restore(copy):
                self.effect()  # one, because the redo log makes it one
                in_file = copy.record.key == KEY
                device.key_file = copy.record.key_name if in_file else device.key_file
                device.attestation_key = device.srk
                device.certificate = copy.record.key_name
                device.record = copy.record
                device.copied = True
            case Forget(copy):
                self.effect()
                if copy.record.key != KEY and device.can_restore(copy):
                    del device.handles[int(copy.record.key[-8:], 16)]
                self.effect()
                device.copy = None

    @rule()
    def the_disk_is_wiped(self) -> None:
        """What a killed run had begun is forgotten with it: a key may be left over in the TPM."""
        if self.device.journal is not None or (self.device.record is not None and self.device.copy is None):
            self.disturbed = True
        self.device.wipe()

    @rule(offset=st.integers(0, 2))
    def somebody_takes_a_handle(self, offset: int) -> None:
        name = f"foreign-{next(self.names)}"
        if FIRST_HANDLE + offset not in self.device.handles:
            self.device.handles[FIRST_HANDLE + offset] = name
            self.foreign.add(name)

    @rule()
    def the_tpm_is_cleared(self) -> None:
        self.disturbed = True
        self.device.seed += 1
        self.device.srk = None
        self.device.handles.clear()
        self.device.copy = None
        self.foreign.clear()

    @rule()
    def the_storage_root_key_is_removed(self) -> None:
        self.device.srk = None

    @invariant()
    def nobody_else_s_object_is_touched(self) -> None:
        assert self.foreign <= set(self.device.handles.values())

    @invariant()
    def there_is_one_key_and_it_is_the_one_spoken_of(self) -> None:
        own = [name for name in self.device.handles.values() if name in self.made]
        assert len(own) + (self.device.key_file is not None) <= 1 or self.disturbed
        known = {each.key_name for each in (self.device.record, self.device.journal) if each is not None}
        known |= {self.device.copy.record.key_name} if self.device.copy else set()
        assert set(own) <= known or self.disturbed

    @invariant()
    def an_identity_is_complete(self) -> None:
        if self.device.record is not None:
            assert self.device.certificate == self.device.record.key_name

    def teardown(self) -> None:
        """Left alone, it gets there by itself: an interrupted first boot needs nobody."""
        if not self.disturbed:
            before, copy = self.enrolled, self.device.copy if self.device.record is None else None
            self.run_first_boot(None, EVERYTHING)
            assert self.device.record is not None
            if copy is not None and self.device.record == copy.record:
                assert self.enrolled == before  # nobody was asked for another certificate


AnyHistory.TestCase.settings = settings(
    max_examples=150, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyHistory = AnyHistory.TestCase
