"""What the machine has of a TPM: device nodes, drivers, rights, and who holds it. Looks only, and judges nothing."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NODE: Final = re.compile(r"tpm(rm)?\d+")
_RESOURCE_MANAGERS: Final = ("tpm2-abrmd", "tcsd")
# of a TPM 2.0 and a TPM 1.2: TCG ACPI Specification 1.4, 7 and 8; some firmware of a TPM 2.0 has both
_ACPI_TABLES: Final = {"TPM2": "2.0", "TCPA": "1.2"}


@dataclass(frozen=True)
class Places:
    """Where the kernel and the system show what they have.

    Attributes:
        dev: device nodes.
        sys: sysfs, see ``Documentation/ABI/stable/sysfs-class-tpm`` of Linux.
        proc: procfs.
        run: ``/run``.
        may_open: whether this user may open a node for reading and writing.
        is_device: whether a node is one of a device that is read and written like a TPM.
    """

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    run: Path = Path("/run")
    may_open: Callable[[Path], bool] = lambda node: os.access(node, os.R_OK | os.W_OK)
    is_device: Callable[[Path], bool] = Path.is_char_device


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A device node.

    Attributes:
        path: where it is.
        mode: its permission bits.
        owner: user that it belongs to.
        group: group that it belongs to.
        may_open: whether this user may open it.
        is_device: whether it is one of a device, and no file or folder.
    """

    path: str
    mode: int
    owner: str
    group: str
    may_open: bool
    is_device: bool = True

    @property
    def name(self) -> str:
        """Such as ``tpmrm0``."""
        return Path(self.path).name

    def __str__(self) -> str:
        """For a person, with the rights on it."""
        return f"{self.path} ({self.owner}:{self.group} {self.mode:04o})"


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """A TPM that a driver of the kernel has found.

    Attributes:
        name: such as ``tpm0``.
        version: the specification's major version; empty where the kernel does not say it (before Linux 5.6).
        driver: such as ``tpm_crb``; empty where there is none to see.
    """

    name: str
    version: str
    driver: str


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that has a node open, or a resource manager that runs (then ``path`` is empty)."""

    program: str
    pid: int
    path: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What there is.

    Attributes:
        user: this user.
        groups: groups of this process.
        member_of: groups that the user database gives this user; a session begun before has fewer.
        nodes: the TPM's device nodes.
        chips: what the kernel has found.
        announced: version of the TPM that the firmware says is there, ``2.0`` or ``1.2``; empty if it says nothing.
        modules: the kernel's TPM modules that are loaded (one that is built in is not among them).
        holders: who has a node open, as far as this user may see.
        managers: resource managers that run.
        contained: whether this is a container.
    """

    user: str
    groups: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    chips: tuple[Chip, ...] = ()
    announced: str = ""
    modules: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()
    managers: tuple[Holder, ...] = ()
    contained: bool = False


def observe_machine(places: Places, wanted: Path | None = None) -> Machine:
    """What ``places`` show, and the node ``wanted`` wherever it is; what this user may not see is not there."""
    nodes = tuple(_nodes(places, wanted))
    user = _user_name(os.geteuid())
    processes = list(_processes(places.proc))
    return Machine(
        user=user,
        groups=tuple(sorted({_group_name(each) for each in {*os.getgroups(), os.getegid()}})),
        member_of=_member_of(os.geteuid()),
        nodes=nodes,
        chips=tuple(_chips(places.sys / "class" / "tpm")),
        announced=_announced(places.sys / "firmware" / "acpi" / "tables"),
        modules=tuple(_modules(places.proc / "modules")),
        holders=tuple(_holders(processes, {node.path for node in nodes})),
        managers=tuple(
            Holder(program=program, pid=pid) for pid, program, _ in processes if program in _RESOURCE_MANAGERS
        ),
        contained=(places.run / "systemd" / "container").exists() or (places.run / ".containerenv").exists(),
    )


def _nodes(places: Places, wanted: Path | None) -> Iterator[Node]:
    found = {path for path in _listed(places.dev) if _NODE.fullmatch(path.name)}
    for path in sorted(found | ({wanted} if wanted is not None else set())):
        with suppress(OSError):  # gone again, or never there
            status = path.stat()
            yield Node(
                path=str(path),
                mode=stat.S_IMODE(status.st_mode),
                owner=_user_name(status.st_uid),
                group=_group_name(status.st_gid),
                may_open=places.may_open(path),
                is_device=places.is_device(path),
            )


def _chips(folder: Path) -> Iterator[Chip]:
    for path in _listed(folder):
        driver = path / "device" / "driver"
        yield Chip(
            name=path.name,
            version=_text(path / "tpm_version_major").strip(),
            driver=driver.resolve().name if driver.exists() else "",
        )


def _announced(tables: Path) -> str:
    return next((version for name, version in _ACPI_TABLES.items() if (tables / name).exists()), "")


def _modules(listing: Path) -> Iterator[str]:
    for line in _text(listing).splitlines():
        name = line.partition(" ")[0]
        if name.startswith("tpm"):
            yield name


def _processes(proc: Path) -> Iterator[tuple[int, str, Path]]:
    """Number, name (15 characters at most) and folder of each process."""
    for path in _listed(proc):
        if path.name.isdecimal():
            yield int(path.name), _text(path / "comm").strip(), path


def _holders(processes: list[tuple[int, str, Path]], nodes: set[str]) -> Iterator[Holder]:
    for pid, program, folder in processes if nodes else ():
        held: set[str] = set()
        for descriptor in _listed(folder / "fd"):
            with suppress(OSError):  # closed again
                held.add(str(descriptor.readlink()))
        for path in sorted(held & nodes):
            yield Holder(program=program, pid=pid, path=path)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _member_of(user: int) -> tuple[str, ...]:
    """Asked for one user: a directory service such as SSSD does not list all groups, or takes long to."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return ()
    return tuple(sorted(map(_group_name, os.getgrouplist(entry.pw_name, entry.pw_gid))))


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
