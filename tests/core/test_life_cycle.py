"""What became of the TPM that a device was enrolled with, and whether its identity may go on being used."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.identity import IdentityRecord
from tpm_mtls.life_cycle import Change, Observed, judge

RECORD = IdentityRecord(
    device="sensor-17",
    key="handle:0x81000100",
    algorithm="ecc-p256",
    key_name="k1",
    srk_name="s1",
    ek_sha256="e1",
    reset_count=7,
    ca_url="https://ca.example",
    enrolled_by="tpm",
)


@pytest.mark.parametrize(
    ("observed", "change", "resets", "text"),
    [
        (Observed("s1"), Change.SAME, 0, ""),
        (Observed("s1", ek_sha256="e1", reset_count=7), Change.SAME, 0, ""),
        (Observed("s1", ek_sha256="e1", reset_count=8), Change.RESTARTED, 1, "the TPM was restarted"),
        (Observed("s1", ek_sha256="e1", reset_count=12), Change.RESTARTED, 5, "the TPM was restarted 5 times"),
        (Observed("s1", reset_count=3), Change.SET_BACK, -4, "fewer restarts than before"),
        (Observed(None, ek_sha256="e1", reset_count=7, has_key=True), Change.SAME, 0, ""),
        (Observed(None, ek_sha256="e1", reset_count=0), Change.CLEARED, 0, "the TPM was cleared"),
        (Observed("s2", ek_sha256="e1", reset_count=9), Change.CLEARED, 0, "the TPM was cleared"),
        (Observed("s2", ek_sha256="e2", reset_count=7), Change.SWAPPED, 0, "this is another TPM: it was replaced"),
        (Observed("s1", ek_sha256="e2"), Change.SWAPPED, 0, "this is another TPM: it was replaced"),
        (Observed("s2", owner="sensor-18"), Change.SWAPPED, 0, "another device, the TPM belongs to sensor-18"),
        (Observed("s1", owner="sensor-18"), Change.SAME, 0, ""),
        (Observed("s2"), Change.CLEARED_OR_SWAPPED, 0, "this is another TPM, or it was cleared"),
        (Observed(None), Change.CLEARED_OR_SWAPPED, 0, "this is another TPM, or it was cleared"),
    ],
)
def test_what_happened_is_told_by_three_marks(observed: Observed, change: Change, resets: int, text: str) -> None:
    judged = judge(RECORD, observed)
    assert (judged.change, judged.resets) == (change, resets)
    assert text in judged.text
    assert bool(judged.text) is (change is not Change.SAME)


def test_an_identity_whose_record_never_saw_an_endorsement_key_cannot_tell_a_clear_from_a_swap() -> None:
    record = msgspec.structs.replace(RECORD, ek_sha256=None, enrolled_by="token")
    assert judge(record, Observed("s2", ek_sha256="e1")).change is Change.CLEARED_OR_SWAPPED
    assert judge(record, Observed("s1", ek_sha256="e1", reset_count=8)).change is Change.RESTARTED


def test_restarts_are_counted_from_where_the_caller_says() -> None:
    assert judge(RECORD, Observed("s1", reset_count=12), reset_count=11).resets == 1


def test_nothing_can_happen_to_an_identity_without_a_tpm() -> None:
    soft = IdentityRecord(
        is_tpm=False, device="s", key="device.key.pem", algorithm="ecc-p256", ca_url="", enrolled_by="token"
    )
    judged = judge(soft, Observed("s2", ek_sha256="e2", reset_count=4, owner="sensor-18"))
    assert (judged.change, judged.usable, judged.text) == (Change.SAME, True, "")


@given(
    srk=st.sampled_from([None, "s1", "s2"]),
    ek=st.sampled_from([None, "e1", "e2"]),
    resets=st.none() | st.integers(0, 20),
    owner=st.sampled_from([None, "sensor-18"]),
    has_key=st.booleans(),
)
def test_another_or_a_cleared_tpm_is_never_used_and_always_explained(
    srk: str | None, ek: str | None, resets: int | None, owner: str | None, *, has_key: bool
) -> None:
    judged = judge(RECORD, Observed(srk, ek_sha256=ek, reset_count=resets, owner=owner, has_key=has_key))
    stays = srk == "s1" or has_key
    assert judged.usable == (stays and ek != "e2")
    assert judged.usable or (judged.text and judged.hint)
