"""Strangers cannot fill the disk with refusals; how many were left out is known."""

from __future__ import annotations

from tpm_mtls_pki.refusal_budget import RefusalBudget


def test_rows_come_back_with_time_and_what_was_left_out_is_counted() -> None:
    now = [100.0]
    budget = RefusalBudget(lambda: now[0], burst=3, rate=0.5)
    assert [budget.spend() for _ in range(5)] == [0, 0, 0, None, None]
    now[0] += 1
    assert budget.spend() is None
    now[0] += 1
    assert [budget.spend(), budget.spend()] == [3, None]
    now[0] += 1000
    assert [budget.spend() for _ in range(4)] == [1, 0, 0, None]
