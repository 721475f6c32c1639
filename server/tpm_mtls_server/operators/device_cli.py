"""``tpm-mtls server device``: what an operator sees of devices and does to them, on the server's machine."""

from __future__ import annotations

from pathlib import Path

import click

from tpm_mtls.cli_options import answer, json_option
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_server.operators.cli_common import by_option, database_option, open_registry, print_list, utc_now

_LIST_HINT = "see: tpm-mtls server device list"

_COLUMNS = {
    "name": "device",
    "state": "state",
    "group": "group",
    "quote": "last quote",
    "said": "health",
    "last_seen": "last seen",
}


@click.group(cls=CommandGroup)
def device() -> None:
    """Devices: what they booted, how they are, and what you decide about them.

    These commands work on the server's database, on its machine. From elsewhere, operators use the HTTP API with their
    own certificates (docs/protocol.md).
    """


@device.command("list", epilog="Example: tpm-mtls server device list --state failing")
@click.option("--group", help="Only the devices of this group.")
@click.option(
    "--state",
    type=click.Choice(["unattested", "attested", "pending", "failing", "outdated", "quarantined"]),
    help="Only those.",
)
@database_option
@json_option
def list_devices(*, group: str | None, state: str | None, database: str, as_json: bool) -> None:
    """List the devices that ever came.

    "last seen" is exact for health reports and quotes; of all other requests one a minute is noted.
    """
    from tpm_mtls.attestation.messages import DeviceState  # noqa: PLC0415 - `server --help` stays quick
    from tpm_mtls_server.operators.device_facts import device_facts  # noqa: PLC0415 - the same
    from tpm_mtls_server.operators.device_words import health_words, verdict_words  # noqa: PLC0415 - the same
    from tpm_mtls_server.registry.registry import PAGE  # noqa: PLC0415 - the same

    now, rows, after = utc_now(), [], ""
    wanted = DeviceState(state) if state else None
    with open_registry(database) as registry:
        while page := registry.devices(group=group, state=wanted, now=now, after=after, limit=PAGE):
            rows += page
            after = page[-1].name
    facts = [device_facts(each, now=now) for each in rows]
    if not as_json:
        words = [{"quote": verdict_words(each.verdict), "said": health_words(each)} for each in rows]
        facts = [each | more for each, more in zip(facts, words, strict=True)]
    empty = "no such devices" if group or state else "no device ever came"
    print_list("devices", facts, _COLUMNS, empty=empty, wrap=["last quote", "health"], as_json=as_json)


@device.command(epilog="Example: tpm-mtls server device show sensor-17.example")
@click.argument("name")
@click.option(
    "--save-log",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Write the event log of the boot that could be approved to this file, for: tpm-mtls pcr log F",
)
@database_option
@json_option
def show(name: str, *, save_log: Path | None, database: str, as_json: bool) -> None:
    """Show a device: its state and why, which PCRs and which entries of the event log differ, what you can do.

    "last seen" is exact for health reports and quotes; of all other requests one a minute is noted.
    """
    from tpm_mtls.files import write_atomic  # noqa: PLC0415 - `server --help` stays quick
    from tpm_mtls_server.operators.device_facts import dossier_facts, read_dossier  # noqa: PLC0415 - the same
    from tpm_mtls_server.operators.device_words import dossier_lines  # noqa: PLC0415 - the same

    now = utc_now()
    with open_registry(database) as registry:
        dossier = read_dossier(registry, name)
    if dossier is None:
        raise StateError(f"no device {name[:80]!r} ever came", hint=_LIST_HINT)
    if save_log is not None:
        if dossier.seen is None or dossier.seen.event_log is None:
            raise StateError(f"{name} has shown no event log", hint="does its agent have one? agent run --event-log")
        write_atomic(save_log, dossier.seen.event_log)
    answer(dossier_facts(dossier, now=now), "\n".join(dossier_lines(dossier, now=now)), as_json=as_json)


@device.command(epilog="Example: tpm-mtls server device approve sensor-17.example")
@click.argument("name")
@click.option(
    "--boot",
    metavar="DIGEST",
    help="Only if its last quote has this PCR digest, which `device show` says: it may have booted again since.",
)
@by_option
@database_option
@json_option
def approve(name: str, *, boot: str | None, by: str, database: str, as_json: bool) -> None:
    """Take what the device's last genuine quote showed as what it should boot; its next quote is held against that."""
    with open_registry(database) as registry:
        baseline = registry.approve(name, by=by, now=utc_now(), boot=boot)
    text = f"{name} should boot what its quote of {baseline.at:%Y-%m-%d %H:%M:%S} UTC showed: {baseline.digest}"
    answer({"name": name, "boot": baseline.digest, "at": f"{baseline.at:%Y-%m-%dT%H:%M:%SZ}"}, text, as_json=as_json)


@device.command(epilog='\b\nExample: tpm-mtls server device quarantine sensor-17.example --reason "stolen"')
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; for the device's operator and the audit log.")
@by_option
@database_option
@json_option
def quarantine(name: str, *, reason: str, by: str, database: str, as_json: bool) -> None:
    """Shut the device out until it is released; it may still report its health and send quotes."""
    from tpm_mtls_server.operators.device_facts import device_facts  # noqa: PLC0415 - `server --help` stays quick

    now = utc_now()
    with open_registry(database) as registry:
        found = registry.quarantine(name, reason=reason, by=by, now=now)
    answer(device_facts(found, now=now), f"{name} is quarantined", as_json=as_json)


@device.command(epilog="Example: tpm-mtls server device release sensor-17.example")
@click.argument("name")
@by_option
@database_option
@json_option
def release(name: str, *, by: str, database: str, as_json: bool) -> None:
    """End the device's quarantine; and if a certificate with another TPM came, take that TPM as the device's own."""
    from tpm_mtls_server.operators.device_facts import device_facts  # noqa: PLC0415 - `server --help` stays quick

    now = utc_now()
    with open_registry(database) as registry:
        found = registry.release(name, by=by, now=now)
    answer(device_facts(found, now=now), f"{name} is released: {found.state(now)}", as_json=as_json)


@device.command(epilog="Example: tpm-mtls server device move sensor-17.example --group gateways")
@click.argument("name")
@click.option("--group", required=True, help="The group that it comes into.")
@by_option
@database_option
@json_option
def move(name: str, *, group: str, by: str, database: str, as_json: bool) -> None:
    """Put the device into a group: it is held against what the group says."""
    from tpm_mtls_server.operators.device_facts import device_facts  # noqa: PLC0415 - `server --help` stays quick

    now = utc_now()
    with open_registry(database) as registry:
        found = registry.move(name, group, by=by, now=now)
    answer(device_facts(found, now=now), f"{name} is in the group {found.group}", as_json=as_json)


@device.command("enroll-key", epilog="Example: tpm-mtls server device enroll-key sensor-17.example --key ak.pub")
@click.argument("name")
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Its public area (TPM2B_PUBLIC or TPMT_PUBLIC, as tpm2_createak -u writes it), or its attestation.key.json.",
)
@click.option("--key-name", metavar="HEX", help="Its Name instead, as tpm2_createak -n writes it.")
@click.option("--withdraw", is_flag=True, help="Take that back.")
@by_option
@database_option
@json_option
def enroll_key(
    name: str, *, key: Path | None, key_name: str | None, withdraw: bool, by: str, database: str, as_json: bool
) -> None:
    """Say yourself that an attestation key is the device's, where no CA has certified it.

    Quotes by that key count for this device then. Nobody verifies that the key is in a genuine TPM: you do, by where
    you have it from.
    """
    from tpm_mtls.device_names import check_device_name  # noqa: PLC0415 - `server --help` stays quick
    from tpm_mtls_server.operators.enrolled_key import check_key_name, read_key_name  # noqa: PLC0415 - the same

    if (key is None) == (key_name is None):
        raise UsageError("which key?", hint="give either --key or --key-name")
    found = read_key_name(key) if key is not None else check_key_name(key_name or "")
    check_device_name(name)
    with open_registry(database, make=not withdraw) as registry:
        if withdraw:
            registry.withdraw_key(found, by=by, now=utc_now())
        else:
            registry.enroll_key(name, found, by=by, now=utc_now())
    text = f"{found} is {'no longer ' if withdraw else ''}an attestation key of {name}"
    answer({"device": name, "key": found, "enrolled": not withdraw}, text, as_json=as_json)
