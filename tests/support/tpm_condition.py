"""What a TPM that is well says of itself, for rules that need no TPM."""

from __future__ import annotations

from tpm_mtls.attestation.health import Condition

WELL = Condition(
    vendor="NTC",
    firmware="7.2.5.0",
    self_test="passed",
    transient_loaded=0,
    transient_available=3,
    sessions_loaded=0,
    sessions_available=3,
    sessions_active=0,
    sessions_active_available=64,
    persistent=2,
    persistent_available=5,
    nv_indices=4,
    nv_counters=0,
    nv_counters_available=8,
    lockout_counter=0,
    lockout_limit=32,
    lockout_interval=7200,
    lockout_recovery=86400,
    locked_out=False,
)
"""Of a device with its keys at two persistent handles; nothing is loaded, and no wrong authorization value counts."""
