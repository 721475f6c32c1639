"""What monitoring sees: numbers in Prometheus' text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/. Labels have few values, whatever a client sends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from tpm_mtls_server.registry import Summary

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

OTHER: Final = "other"
"""The path of a request for something that there is not."""

NO_CHECK: Final = "none"
"""The check of a quote that failed none."""

_CHECKS: Final = range(1, 10)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What this server has counted since it started. For the event loop's thread only."""

    def __init__(self) -> None:
        self._requests = Counter[tuple[str, int]]()
        self._verdicts = Counter(dict.fromkeys((NO_CHECK, *map(str, _CHECKS)), 0))
        self._reports = Counter({"true": 0, "false": 0})

    def count_request(self, path: str, status: int) -> None:
        """Counts an answered request; ``path`` is one of the server's own, as `OTHER`, not the client's."""
        self._requests[path, status] += 1

    def count_verdict(self, check: int | None) -> None:
        """Counts a quote that was judged; ``check`` is the number of the one that it failed."""
        self._verdicts[NO_CHECK if check is None else str(check)] += 1

    def count_report(self, *, maintenance: bool) -> None:
        """Counts a health report."""
        self._reports[str(maintenance).lower()] += 1

    def families(self) -> Iterator[Family]:
        """The counters."""
        yield Family(
            "tpm_mtls_requests_total",
            "counter",
            "Requests answered, by path and HTTP status.",
            {(("path", path), ("status", str(status))): number for (path, status), number in self._requests.items()},
        )
        yield Family(
            "tpm_mtls_verdicts_total",
            "counter",
            "Quotes judged, by the check that they failed.",
            {(("check", check),): number for check, number in self._verdicts.items()},
        )
        yield Family(
            "tpm_mtls_health_reports_total",
            "counter",
            "Health reports received, by whether the device is in maintenance mode.",
            {(("maintenance", word),): number for word, number in self._reports.items()},
        )


@dataclass(frozen=True)
class Family:
    """Samples of one name.

    Attributes:
        name: the metric's name.
        kind: ``counter`` or ``gauge``.
        about: what it counts, for people; without line ends and backslashes.
        samples: the values by their labels.
    """

    name: str
    kind: str
    about: str
    samples: Mapping[Labels, float]

    def lines(self) -> Iterator[str]:
        """Its lines, samples in the order of their labels."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in sorted(self.samples.items()):
            text = ",".join(f'{name}="{_escaped(of)}"' for name, of in labels)
            yield f"{self.name}{{{text}}} {value}" if text else f"{self.name} {value}"


def exposition(metrics: Metrics, summary: Summary, *, own_expiry: datetime) -> str:
    """All numbers of this server.

    Args:
        metrics: what it counted.
        summary: the registry's numbers.
        own_expiry: when the server's own certificate expires.
    """
    families = (*_of_registry(summary), *metrics.families(), _expiry(own_expiry))
    return "".join(f"{line}\n" for family in families for line in family.lines())


def _of_registry(summary: Summary) -> Iterator[Family]:
    yield Family(
        "tpm_mtls_devices",
        "gauge",
        "Devices in the registry, by state.",
        {(("state", state.value),): number for state, number in summary.states.items()},
    )
    yield Family(
        "tpm_mtls_devices_reporting_health",
        "gauge",
        "Devices that ever reported their health.",
        {(): summary.reporting},
    )
    yield Family(
        "tpm_mtls_devices_failing_health",
        "gauge",
        "Devices whose last health report has a failure, by its class.",
        {(("failure", kind),): number for kind, number in summary.failures.items()},
    )


def _expiry(when: datetime) -> Family:
    return Family(
        "tpm_mtls_server_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the server's own certificate expires.",
        {(): int(when.timestamp())},
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
