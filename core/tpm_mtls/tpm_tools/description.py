"""What ``tpm-mtls tpm info`` and ``capabilities`` say: which TPM it is, how it is, what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography import x509

from tpm_mtls.certificates import UNREADABLE, certificate_spki
from tpm_mtls.errors import EvidenceError, HandleOccupiedError, PemError, TpmMtlsError
from tpm_mtls.structures import ek_hash
from tpm_mtls.structures.algorithms import algorithm_name, curve_name
from tpm_mtls.tpm_firmware import firmware_faults
from tpm_mtls.tpm_tools.properties import FAMILY, LEVEL, REVISION, VENDOR_STRINGS, VENDORS, property_name
from tpm_mtls.trace.commands import command_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tpm_mtls.structures import EkTemplate
    from tpm_mtls.tpm import Tpm

_NO_VALUE: Final = "none"


def describe(tpm: Tpm) -> dict[str, Any]:
    """Which TPM it is and how it is (9 commands, and three for each endorsement key's certificate).

    Raises:
        TpmRefusedError: it does not say all that it must, as in failure mode.
    """
    fixed, condition = tpm.capabilities.fixed(), tpm.capabilities.condition()
    srk_name, srk_trouble = _storage_root(tpm)
    return {
        "vendor": condition.vendor,
        "vendor_name": VENDORS.get(condition.vendor),
        "model": _text(fixed, VENDOR_STRINGS),
        "firmware": condition.firmware,
        "faults": [str(fault) for fault in firmware_faults(condition.vendor, condition.firmware)],
        "specification": f"{_text(fixed, [FAMILY])} level {fixed[LEVEL]} revision {fixed[REVISION] / 100:.2f}",
        "self_test": condition.self_test,
        "reset_count": tpm.facts().reset_count,
        "srk_name": srk_name,
        "srk_trouble": srk_trouble,
        "endorsement_keys": _endorsement_keys(tpm),
        "condition": msgspec.to_builtins(condition),
    }


def info_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `describe` found, for a person."""
    name = f" ({facts['vendor_name']})" if facts["vendor_name"] else ""
    yield "vendor", f"{facts['vendor']}{name}"
    yield "model", facts["model"]
    yield "firmware", facts["firmware"]
    for fault in facts["faults"] or ["none that the version tells"]:
        yield "known faults", fault
    yield "specification", f"TPM {facts['specification']}"
    yield "self-test", facts["self_test"]
    yield "resets since it was cleared", str(facts["reset_count"])
    yield "storage root key", facts["srk_name"] or facts["srk_trouble"] or _NO_VALUE
    if not facts["endorsement_keys"]:
        yield "certified endorsement key", _NO_VALUE
    for template, digest in facts["endorsement_keys"].items():
        yield "certified endorsement key", f"{template} {digest or '(its certificate is damaged)'}"
    yield from _condition_rows(facts["condition"])


def list_capabilities(tpm: Tpm) -> dict[str, Any]:
    """What it can do, its limits, and what is in it (9 commands, more where a list is long)."""
    return {
        "algorithms": [algorithm_name(each) for each in tpm.inventory.algorithms()],
        "curves": [curve_name(each) for each in tpm.inventory.curves()],
        "commands": [command_name(each) for each in tpm.inventory.commands()],
        "pcr_banks": list(tpm.pcrs.banks()),
        "fixed": {property_name(number): value for number, value in tpm.capabilities.fixed().items()},
        "variable": {property_name(number): value for number, value in tpm.capabilities.variable().items()},
        "transient": [f"{each:#010x}" for each in tpm.capabilities.transient_handles()],
        "persistent": [f"{each:#010x}" for each in tpm.persistent_handles()],
        "nv_indices": [f"{each:#010x}" for each in tpm.nv.indices()],
    }


def capability_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What `list_capabilities` found, for a person: kind, name, value."""
    kinds = {"algorithms": "algorithm", "curves": "curve", "pcr_banks": "PCR bank", "commands": "command"}
    for key, kind in kinds.items():
        yield from ((kind, name, "") for name in facts[key])
    for key in ("fixed", "variable"):
        yield from ((f"{key} property", name, f"{value:#x}") for name, value in facts[key].items())
    for key, kind in {
        "transient": "loaded object",
        "persistent": "persistent object",
        "nv_indices": "NV index",
    }.items():
        yield from ((kind, handle, "") for handle in facts[key])


def collect(parts: Mapping[str, Callable[[], dict[str, Any]]]) -> tuple[dict[str, Any], list[str]]:
    """What ``parts`` say, and the names of those that failed, for a diagnostic bundle: in their places stands why."""
    found: dict[str, Any] = {}
    failed: list[str] = []
    for name, part in parts.items():
        try:
            found[name] = part()
        except TpmMtlsError as error:
            found[name] = {"error": str(error), "hint": error.hint}
            failed.append(name)
    return found, failed


def _condition_rows(condition: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of a `tpm_mtls.attestation.health.Condition`."""

    def of(used: str, free: str) -> str:
        return f"{condition[used]}, {condition[free]} more possible"

    yield "loaded objects", of("transient_loaded", "transient_available")
    yield "loaded sessions", of("sessions_loaded", "sessions_available")
    yield "active sessions", of("sessions_active", "sessions_active_available")
    yield "persistent objects", of("persistent", "persistent_available")
    yield "NV indices", f"{condition['nv_indices']}"
    yield "NV counters", of("nv_counters", "nv_counters_available")
    wrong = f"{condition['lockout_counter']} of {condition['lockout_limit']}"
    locked = "; it is locked" if condition["locked_out"] else ""
    yield "wrong authorization values", f"{wrong}, one is forgotten each {condition['lockout_interval']} s{locked}"


def _storage_root(tpm: Tpm) -> tuple[str | None, str | None]:
    """The storage root key's Name; or why there is none, if something else is in its place."""
    try:
        found = tpm.srk.read()
    except HandleOccupiedError as error:
        return None, str(error)
    return (found.name.hex() if found is not None else None), None


def _endorsement_keys(tpm: Tpm) -> dict[str, str | None]:
    """By template, what a CA's allow-list knows the key by; none where the certificate cannot be read."""
    return {
        template.value: _certified(tpm.endorsement.certificate, template) for template in tpm.endorsement.certified()
    }


def _certified(certificate: Callable[[EkTemplate], bytes | None], template: EkTemplate) -> str | None:
    try:
        return ek_hash(certificate_spki(x509.load_der_x509_certificate(certificate(template) or b"")))
    except (EvidenceError, PemError, *UNREADABLE):
        return None


def _text(properties: Mapping[int, int], numbers: range | list[int]) -> str:
    data = b"".join(properties.get(number, 0).to_bytes(4, "big") for number in numbers)
    return " ".join(data.replace(b"\0", b"").decode("ascii", errors="replace").split())
