"""Device nodes, drivers, rights and resource managers: what is seen of them, and what it means."""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support.patient import FakeMachine
from tpm_mtls.doctor.machine import Chip, Holder, Machine, Node, Places, observe_machine
from tpm_mtls.doctor.machine_rules import judge_machine, named_device

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.doctor.findings import Finding

MANAGED = Node(path="/dev/tpmrm0", mode=0o660, owner="tss", group="tss", may_open=True)
RAW = Node(path="/dev/tpm0", mode=0o660, owner="tss", group="root", may_open=True)
CHIP = Chip(name="tpm0", version="2", driver="tpm_crb")
OLD = Chip(name="tpm0", version="1", driver="")
TCTI = "device:/dev/tpmrm0"


def machine(**changes: Any) -> Machine:  # noqa: ANN401 - any of its fields
    facts = {"user": "ada", "groups": ("ada",), "nodes": (RAW, MANAGED), "chips": (CHIP,)}
    return Machine(**(facts | changes))


def node(of: Node, **changes: Any) -> Node:  # noqa: ANN401 - the same
    return Node(**({name: getattr(of, name) for name in Node.__struct_fields__} | changes))


def worst(found: list[Finding]) -> Finding:
    return max(found, key=lambda finding: ["ok", "warning", "problem"].index(finding.level))


def test_a_machine_as_distributions_set_it_up_is_well() -> None:
    found = judge_machine(machine(), TCTI)
    assert {each.level for each in found} == {"ok"}
    assert [each.check for each in found] == ["tpm.device", "tpm.permissions", "tpm.resource-manager"]
    assert found[0].text == "/dev/tpmrm0 (tss:tss 0660), driver tpm_crb"
    assert judge_machine(machine(), "pcap:" + TCTI) == found


@pytest.mark.parametrize(
    ("changes", "tcti", "level", "text", "remedy"),
    [
        ({"nodes": (), "chips": (), "announced": "2.0"}, TCTI, "problem", "no driver took it", "modprobe tpm_crb"),
        (
            {"nodes": (), "chips": (), "announced": "1.2"},
            TCTI, "problem", r"no /dev/tpmrm0; what the firmware announces .*TCPA\) is a TPM 1\.2", "TPM 2.0 in the",
        ),
        ({"nodes": (), "chips": ()}, TCTI, "problem", "nothing says that this machine has a TPM", "device tree"),
        ({"nodes": (), "contained": True}, TCTI, "problem", "the kernel has the TPM tpm0", "to the container: --dev"),
        ({"nodes": (node(MANAGED, is_device=False),)}, TCTI, "problem", "tpmrm0 .* is no device", "--tcti device:"),
        ({"nodes": (RAW,), "chips": (OLD,)}, TCTI, "problem", "/dev/tpmrm0 is a TPM 1.2", "TPM 2.0 in the"),
        ({"nodes": ()}, TCTI, "problem", "the kernel has the TPM tpm0", "is this a container"),
        ({"nodes": (RAW,)}, TCTI, "problem", "this kernel has no resource manager", "4.12 or newer"),
        ({}, "device:/dev/tpmrm7", "problem", "no /dev/tpmrm7, but /dev/tpm0, /dev/tpmrm0", "device:/dev/tpmrm0$"),
        ({"nodes": ()}, "device:/dev/tpmrm7", "problem", "no /dev/tpmrm7, but tpm0", "device:PATH"),
        ({"chips": (OLD,)}, TCTI, "problem", "a TPM 1.2", "TPM 2.0 in the"),
        ({"chips": ()}, "device:/dev/tpm0", "warning", "admits one program", "--tcti device:/dev/tpmrm0"),
        (
            {"holders": (Holder(program="tpm2-abrmd", pid=7, path="/dev/tpm0"),)},
            TCTI, "warning", r"two resource managers: the kernel's, and tpm2-abrmd \(process 7\)", "disable --now",
        ),
        (
            {"holders": (Holder(program="vendor-tool", pid=7, path="/dev/tpm0"),)},
            TCTI, "warning", r"vendor-tool \(process 7\) holds /dev/tpm0: what it loads", "let it use /dev/tpmrm0",
        ),
        (
            {"holders": (Holder(program="vendor-tool", pid=7, path="/dev/tpm0"),)},
            "device:/dev/tpm0", "problem", "held by vendor-tool", "--tcti device:/dev/tpmrm0; or end vendor-tool",
        ),
        (
            {"nodes": (node(MANAGED, mode=0o666),)},
            TCTI, "warning", r"every user of this machine .*\(tss:tss 0666\)", "chmod 0660 /dev/tpmrm0",
        ),
    ],
)  # fmt: skip
def test_each_fault_is_named(changes: dict[str, Any], tcti: str, level: str, text: str, remedy: str) -> None:
    found = worst(judge_machine(machine(**changes), tcti))
    assert found.level == level
    assert re.search(text, found.text), found
    assert re.search(remedy, found.remedy), found


@pytest.mark.parametrize(
    ("changes", "of", "remedy"),
    [
        ({}, MANAGED, "usermod -aG tss ada, then log in again"),
        ({"member_of": ("tss",)}, MANAGED, "this session began before: log out and in again"),
        ({}, node(MANAGED, mode=0o600, group="root"), "the udev rules are missing: install the package tpm-udev"),
        ({"nodes": (MANAGED,)}, RAW, "the raw device is for resource managers: --tcti device:/dev/tpmrm0"),
        ({}, node(RAW, mode=0o600), "the udev rules are missing"),
    ],
)
def test_who_may_not_open_it_is_told_how_to_become_one_who_may(changes: dict[str, Any], of: Node, remedy: str) -> None:
    shut = node(of, may_open=False)
    seen = machine(**({"nodes": (shut, *changes.pop("nodes", ()))} | changes))
    found = next(each for each in judge_machine(seen, f"device:{of.path}") if each.check == "tpm.permissions")
    assert found.level == "problem"
    assert remedy in found.remedy


def test_the_user_space_resource_manager_must_run_where_the_tcti_names_it() -> None:
    (found,) = judge_machine(machine(managers=(Holder(program="tcsd", pid=6),)), "tabrmd:bus_type=system")
    assert (found.level, found.text) == ("problem", "the TCTI is tabrmd, and no tpm2-abrmd runs")
    running = (Holder(program="tcsd", pid=6), Holder(program="tpm2-abrmd", pid=7))
    (found,) = judge_machine(machine(managers=running), "tabrmd:bus_type=system")
    assert (found.level, found.text) == ("ok", "tpm2-abrmd runs (process 7)")


def test_a_tpm_elsewhere_needs_no_device_here() -> None:
    (found,) = judge_machine(machine(nodes=(), chips=()), "swtpm:port=2321")
    assert found.level == "ok"


def test_what_the_folders_show_is_seen(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    (fake.dev / "tpmfake").touch()
    driver = tmp_path / "drivers" / "tpm_crb"
    driver.mkdir(parents=True)
    device = fake.sys / "class" / "tpm" / "tpm0" / "device"
    device.mkdir()
    (device / "driver").symlink_to(driver)
    tables = fake.sys / "firmware" / "acpi" / "tables"
    tables.mkdir(parents=True)
    (tables / "TPM2").touch()
    (tables / "TCPA").touch()  # firmware of a TPM 2.0 can have both
    (fake.run / ".containerenv").touch()
    proc = tmp_path / "proc"
    (proc / "77" / "fd").mkdir(parents=True)
    (proc / "77" / "comm").write_text("tpm2-abrmd\n")
    (proc / "77" / "fd" / "3").symlink_to(fake.dev / "tpm0")
    (proc / "77" / "fd" / "4").write_text("no link: closed again")
    (proc / "modules").write_text("tpm_crb 20480 0 - Live 0x0\ntpm 90112 3 tpm_crb, Live 0x0\next4 1 0 - Live 0x0\n")
    seen = observe_machine(Places(dev=fake.dev, sys=fake.sys, proc=proc, run=fake.run))
    assert [(each.name, each.mode, each.may_open) for each in seen.nodes] == [
        ("tpm0", 0o600, True),
        ("tpmrm0", 0o660, True),
    ]
    assert seen.chips == (CHIP,)
    assert seen.announced == "2.0"
    assert seen.contained
    assert seen.modules == ("tpm_crb", "tpm")
    assert seen.holders == (Holder(program="tpm2-abrmd", pid=77, path=f"{fake.dev}/tpm0"),)
    assert seen.managers == (Holder(program="tpm2-abrmd", pid=77),)
    assert grp.getgrgid(os.getegid()).gr_name in seen.groups


def test_firmware_with_a_table_of_a_tpm_1_2_alone_announces_that(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path, nodes={}, version=None)
    tables = fake.sys / "firmware" / "acpi" / "tables"
    tables.mkdir(parents=True)
    (tables / "TCPA").touch()
    seen = observe_machine(fake.places)
    (found,) = judge_machine(seen, fake.tcti)
    assert (found.check, seen.announced) == ("tpm.version", "1.2")


def test_a_machine_that_shows_nothing_has_nothing(tmp_path: Path) -> None:
    seen = observe_machine(Places(*(tmp_path / name for name in ("dev", "sys", "proc", "run"))))
    assert (seen.nodes, seen.chips, seen.holders, seen.modules) == ((), (), (), ())
    assert seen.announced == ""
    assert not seen.contained


def test_the_groups_of_a_user_are_those_of_the_user_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As id(1) says them: whether the user is in a group, or it is the user's own."""
    nowhere = Places(*(tmp_path / name for name in ("dev", "sys", "proc", "run")))
    known = subprocess.run(["id", "-Gn", "--", pwd.getpwuid(os.geteuid()).pw_name], capture_output=True, check=True)
    assert observe_machine(nowhere).member_of == tuple(sorted(known.stdout.decode().split()))

    monkeypatch.setattr(os, "geteuid", lambda: 54321)  # a container's, without an entry
    assert observe_machine(nowhere).member_of == ()


def test_a_node_that_is_gone_again_and_owners_without_a_name_are_no_error(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    (fake.dev / "tpmrm1").symlink_to("nowhere")
    if os.geteuid() == 0:
        os.chown(fake.dev / "tpm0", 54321, 54321)
    seen = observe_machine(fake.places)
    assert [each.name for each in seen.nodes] == ["tpm0", "tpmrm0"]
    assert os.geteuid() or str(seen.nodes[0]).endswith("(54321:54321 0600)")


def test_a_link_stands_for_the_node_that_it_leads_to(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    (tmp_path / "my-tpm").symlink_to(fake.dev / "tpmrm0")
    tcti = f"device:{tmp_path}/my-tpm"
    found = judge_machine(observe_machine(fake.places, named_device(tcti)), tcti)
    assert [each.level for each in found] == ["ok"] * 3
    elsewhere = tmp_path / "tpmrm0"
    elsewhere.touch(mode=0o600)
    found = judge_machine(observe_machine(fake.places, elsewhere), f"device:{elsewhere}")
    assert found[0].text.startswith(f"{elsewhere} (")
    (lost,) = judge_machine(observe_machine(fake.places, tmp_path / "none"), f"device:{tmp_path}/none")
    assert lost.level == "problem"


def test_links_in_a_circle_lead_to_no_device(tmp_path: Path) -> None:
    (tmp_path / "tpmrm0").symlink_to(tmp_path / "tpmrm0")
    wanted = named_device(f"device:{tmp_path}/tpmrm0")
    (found,) = judge_machine(observe_machine(Places(dev=tmp_path, sys=tmp_path), wanted), f"device:{tmp_path}/tpmrm0")
    assert (found.level, found.check) == ("problem", "tpm.device")


def test_this_very_machine_can_be_looked_at() -> None:
    seen = observe_machine(Places())
    assert seen.user == subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_device_that_is_no_tpms_gets_no_advice_for_one() -> None:
    """To take rights on ``/dev/null`` away, and to end who has it open, would do harm."""
    null = node(RAW, path="/dev/null", mode=0o666)
    shell = Holder(program="bash", pid=17, path="/dev/null")
    found = judge_machine(machine(nodes=(null,), holders=(shell,)), "device:/dev/null")
    assert [(each.level, each.remedy) for each in found] == [("ok", "")]

    closed = node(null, may_open=False)
    assert "name the TPM's" in worst(judge_machine(machine(nodes=(closed,)), "device:/dev/null")).remedy
