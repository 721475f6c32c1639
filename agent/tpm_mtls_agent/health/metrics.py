"""``health.prom``: a report in the text format of Prometheus (exposition format 0.0.4), for its textfile collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from tpm_mtls.attestation.health import CautionKind, Condition, FailureKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tpm_mtls.attestation.health import HealthReport

_COUNTERS: Final = {
    "transient_loaded": "Objects loaded in the TPM.",
    "transient_available": "Objects that the TPM has room for.",
    "sessions_loaded": "Sessions in the TPM's memory.",
    "sessions_available": "Sessions that the TPM has room for.",
    "sessions_active": "Sessions, loaded and saved.",
    "sessions_active_available": "Sessions that may become active.",
    "persistent": "Persistent objects.",
    "persistent_available": "Persistent objects that NV memory has room for.",
    "nv_indices": "NV indices.",
    "nv_counters": "NV indices that count.",
    "nv_counters_available": "Counters that NV memory has room for.",
    "lockout_counter": "Wrong authorization values that count.",
    "lockout_limit": "Wrong authorization values that lock the TPM.",
    "lockout_interval": "Seconds after which a wrong authorization value is forgotten.",
    "lockout_recovery": "Seconds until a wrong lockout authorization may be tried again.",
    "locked_out": "Whether the TPM is in dictionary-attack lockout.",
}


def as_metrics(report: HealthReport) -> str:
    """The metrics; each a gauge, and its name begins with ``tpm_mtls_``."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: HealthReport) -> Iterator[str]:
    failing = {each.kind for each in report.failures}
    warned = [each.kind for each in report.warnings]
    yield from _gauge("health_time_seconds", "When the TPM was checked, seconds since 1970.", [({}, report.time)])
    yield from _gauge("is_tpm", "Whether the device's identity is in a TPM.", [({}, report.is_tpm)])
    yield from _gauge("maintenance", "Whether the device is in maintenance mode.", [({}, report.maintenance)])
    yield from _gauge(
        "health_failure",
        "Reasons for maintenance mode.",
        [({"kind": kind}, kind in failing) for kind in get_args(FailureKind)],
    )
    yield from _gauge(
        "health_warning",
        "What works yet, and should be looked at.",
        [({"kind": kind}, warned.count(kind)) for kind in get_args(CautionKind)],
    )
    made = [each for each in report.checks if each.outcome != "skipped"]
    if made:
        passed = [({"check": each.name}, each.outcome == "passed") for each in made]
        yield from _gauge("check_passed", "Whether the check passed.", passed)
        took = [({"check": each.name}, each.seconds) for each in made]
        yield from _gauge("check_seconds", "How long the check took.", took)
    if report.condition is not None:
        yield from _condition(report.condition)


def _condition(condition: Condition) -> Iterator[str]:
    labels = {"vendor": condition.vendor, "firmware": condition.firmware, "self_test": condition.self_test}
    yield from _gauge("tpm_info", "Which TPM it is.", [(labels, True)])
    for name, text in _COUNTERS.items():
        yield from _gauge(f"tpm_{name}", text, [({}, getattr(condition, name))])


def _gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    yield f"# HELP tpm_mtls_{name} {text}"
    yield f"# TYPE tpm_mtls_{name} gauge"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        yield f"tpm_mtls_{name}{{{inside}}} {_number(value)}" if inside else f"tpm_mtls_{name} {_number(value)}"


def _number(value: float) -> str:
    """Not as 1.7e+09: seconds since 1970 would lose their last digits."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _escaped(content: str) -> str:
    return content.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
