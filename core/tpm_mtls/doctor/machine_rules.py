"""What the machine's device nodes, drivers, rights and resource managers mean. Pure, but for symbolic links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpm_mtls.device_nodes import chip_name, is_managed, is_tpm_node, managed_node
from tpm_mtls.doctor.findings import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.doctor.findings import Finding
    from tpm_mtls.doctor.machine import Machine, Node

_DEVICE: Final = "tpm.device"
_RIGHTS: Final = "tpm.permissions"
_MANAGER: Final = "tpm.resource-manager"
_SIMULATOR: Final = "to go on without one: tpm-mtls simulator start --dir D, then --tcti with what it prints"
_OTHERS_MAY: Final = 0o002  # a program that uses the TPM opens it for reading and writing
_GROUP_MAY: Final = 0o060


def judge_machine(machine: Machine, tcti: str) -> list[Finding]:
    """What ``machine`` means for who uses the TPM at ``tcti``, a string of `tpm_mtls.tcti.chosen_tcti`.

    1. The TPM is not reached through a device of this machine: then nothing else matters, but tabrmd must run.
    2. There is the node that the TCTI names, and it is a device's; else why not.
    3. It is no TPM 1.2.
    4. This user may open it, and not everybody.
    5. Nobody else holds it, and it has one resource manager.
    """
    name = tcti.removeprefix("pcap:").partition(":")[0]
    if name == "tabrmd":  # 1
        return [_tabrmd(machine)]
    if name != "device":
        return [ok(_DEVICE, f"the TPM is reached by {name}: this machine's own device is not needed")]
    wanted = named_device(tcti)
    node = next((each for each in machine.nodes if each.path == str(wanted)), None)
    if node is None:
        return [_missing(machine, str(wanted))]  # 2
    if not node.is_device:
        return [problem(_DEVICE, f"{node} is no device", "name the TPM's: --tcti device:/dev/tpmrm0")]
    if not is_tpm_node(node.name):  # a simulated one's, or a mistake: nothing that is said of a TPM's node is true
        return [ok(_DEVICE, f"{node}, which has no name of a TPM's"), *_may_open(machine, node)]
    return [*_found(machine, node), *_rights(machine, node), *_conflicts(machine, node)]


def named_device(tcti: str) -> Path | None:
    """The device node that ``tcti`` names, where symbolic links lead; none if it names none."""
    name, _, path = tcti.removeprefix("pcap:").partition(":")
    # pathlib's resolve fails where links lead in a circle
    return Path(os.path.realpath(path)) if name == "device" else None


def _tabrmd(machine: Machine) -> Finding:
    for manager in machine.managers:
        if manager.program == "tpm2-abrmd":
            return ok(_MANAGER, f"tpm2-abrmd runs (process {manager.pid})")
    return problem(
        _MANAGER,
        "the TCTI is tabrmd, and no tpm2-abrmd runs",
        "systemctl start tpm2-abrmd; or use the kernel's resource manager: --tcti device:/dev/tpmrm0",
    )


def _missing(machine: Machine, path: str) -> Finding:
    wanted = Path(path).name
    chip = next((each for each in machine.chips if each.name == chip_name(wanted)), None)
    if chip is not None and chip.version == "1":
        return _old(path)
    raw = next((node for node in machine.nodes if node.name == chip_name(wanted)), None)
    if raw is not None:
        return problem(
            _DEVICE,
            f"there is {raw.path}, but no {path}: this kernel has no resource manager",
            f"use a kernel of 4.12 or newer; or one program at a time: --tcti device:{raw.path}",
        )
    if chip is not None:
        inside = "pass the device to the container" if machine.contained else "is this a container? pass the device"
        return problem(
            _DEVICE,
            f"the kernel has the TPM {chip.name}, but there is no {path}",
            f"{inside}: --device {path}; in a systemd unit: PrivateDevices=no and DeviceAllow={path} rw",
        )
    if machine.nodes or machine.chips:
        there = [node.path for node in machine.nodes] or [each.name for each in machine.chips]
        managed = next((node.path for node in machine.nodes if is_managed(node.name)), "PATH")
        remedy = f"name that one: --tcti device:{managed}"
        return problem(_DEVICE, f"there is no {path}, but {', '.join(there)}", remedy)
    return _unfound(machine, path)


def _unfound(machine: Machine, path: str) -> Finding:
    """No driver of the kernel has a TPM: what the firmware says of one."""
    if machine.announced == "1.2":
        return _old(f"there is no {path}; what the firmware announces (ACPI table TCPA)")
    if machine.announced:
        return problem(
            _DEVICE,
            f"there is no {path}: the firmware announces a TPM, and no driver took it",
            "modprobe tpm_crb; modprobe tpm_tis; then see: dmesg | grep -i tpm",
        )
    return problem(
        _DEVICE,
        f"there is no {path}, and nothing says that this machine has a TPM",
        f"switch it on in the firmware's set-up, or add it to the device tree; {_SIMULATOR}",
    )


def _old(what: str) -> Finding:
    return problem(
        "tpm.version",
        f"{what} is a TPM 1.2: it has no ECC keys and none of the commands that are needed",
        f"switch it to TPM 2.0 in the firmware's set-up if it can, or use another chip; {_SIMULATOR}",
    )


def _found(machine: Machine, node: Node) -> Iterator[Finding]:
    chip = next((each for each in machine.chips if each.name == chip_name(node.name)), None)
    if chip is not None and chip.version == "1":  # 3
        yield _old(node.path)
        return
    driver = f", driver {chip.driver}" if chip is not None and chip.driver else ""
    yield ok(_DEVICE, f"{node}{driver}")


def _may_open(machine: Machine, node: Node) -> Iterator[Finding]:
    if not node.may_open:
        remedy = "name the TPM's: --tcti device:/dev/tpmrm0; else run it as a user who may"
        yield problem(_RIGHTS, f"the user {machine.user} may not open {node}", remedy)


def _rights(machine: Machine, node: Node) -> Iterator[Finding]:
    if not node.may_open:  # 4
        yield problem(_RIGHTS, f"the user {machine.user} may not open {node}", _admission(machine, node))
    elif node.mode & _OTHERS_MAY:
        yield warning(
            _RIGHTS,
            f"every user of this machine may use the TPM: {node}",
            f"chmod 0660 {node.path}, and install the udev rules that keep it so (package tpm-udev)",
        )
    else:
        yield ok(_RIGHTS, f"the user {machine.user} may open {node.path}")


def _admission(machine: Machine, node: Node) -> str:
    if node.mode & _GROUP_MAY == _GROUP_MAY and node.group != "root":
        if node.group in machine.member_of and node.group not in machine.groups:
            return f"the user is in the group {node.group}, but this session began before: log out and in again"
        return f"usermod -aG {node.group} {machine.user}, then log in again; or run it as root"
    if not is_managed(node.name) and any(is_managed(each.name) for each in machine.nodes):
        return f"the raw device is for resource managers: --tcti device:{managed_node(node.path)}"
    return "the udev rules are missing: install the package tpm-udev, then udevadm trigger; or run it as root"


def _conflicts(machine: Machine, node: Node) -> Iterator[Finding]:
    raw = Path(node.path).with_name(chip_name(node.name))
    managed = managed_node(node.path)
    holder = next((each for each in machine.holders if each.path == str(raw)), None)
    who = f"{holder.program} (process {holder.pid})" if holder is not None else ""
    if holder is not None and not is_managed(node.name):  # 5
        other = "tabrmd" if holder.program == "tpm2-abrmd" else f"device:{managed}"
        yield problem(
            _MANAGER,
            f"{node.path} is held by {who}, and admits one program at a time",
            f"--tcti {other}; or end {holder.program}",
        )
    elif holder is not None and holder.program == "tpm2-abrmd":
        yield warning(
            _MANAGER,
            f"two resource managers: the kernel's, and {who}, which holds {raw}",
            "use one: systemctl disable --now tpm2-abrmd; the kernel's serves every program",
        )
    elif holder is not None:
        yield warning(
            _MANAGER,
            f"{who} holds {raw}: what it loads takes the room of all who use {node.path}",
            f"let it use {node.path}, too; or end {holder.program}",
        )
    elif not is_managed(node.name):
        yield warning(
            _MANAGER,
            f"{node.path} has no resource manager: it admits one program, and keeps what a killed one left",
            f"--tcti device:{managed}",
        )
    else:
        yield ok(_MANAGER, "the kernel's, alone")
