"""The registry of devices: who they are, when they came, what they booted, and what operators decided about them.

`Registry` is what operators see and do; `contacts` and `attestations` are what devices cause. All of it lies in the
server's database, beside the telemetry.
"""

from tpm_mtls_server.registry.registry import Registry
from tpm_mtls_server.registry.rows import (
    AttestationKeyRow,
    AuditRow,
    BaselineRow,
    DeviceRow,
    GroupRow,
    Mode,
    ObservationRow,
    QuoteRow,
    ReferenceKind,
    ReferenceRow,
    StandingVerdict,
)
from tpm_mtls_server.registry.summary import Summary

__all__ = [
    "AttestationKeyRow",
    "AuditRow",
    "BaselineRow",
    "DeviceRow",
    "GroupRow",
    "Mode",
    "ObservationRow",
    "QuoteRow",
    "ReferenceKind",
    "ReferenceRow",
    "Registry",
    "StandingVerdict",
    "Summary",
]
