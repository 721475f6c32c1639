"""Which program may do what with which secret.

Without an allow-list every program that can open the socket may do everything with the names that it knows: programs
that were written for the daemon tpmd of PhyOS rely on that. With an allow-list, what no rule allows is refused.

    [[allow]]
    uid = "shop"                                    # number or name
    gid = "shop"                                    # its own or another one of its groups
    cgroup = "/system.slice/docker-*.scope"         # * and ? within a part; ** at the end for all below
    actions = ["get"]                               # set, get, del
    names = ["stripe-*"]                            # * and ?

A rule applies to a program that meets all of its first three; it has one of them at least.
"""

from __future__ import annotations

import grp
import pwd
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from tpm_mtls.errors import AccessDeniedError, UsageError
from tpm_mtls.files import check_private, read_capped
from tpm_mtls.secrets.protocol import Action  # noqa: TC001 - msgspec reads it when the program runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls_agent.requests.peers import Peer

LIST_LIMIT: Final = 1024 * 1024
"""Bytes of an allow-list: some five thousand rules."""


class Access(Protocol):
    """Decides about requests."""

    @property
    def strict(self) -> bool:
        """Whether not every program may ask for everything."""

    def check(self, peer: Peer, action: Action, name: str) -> None:
        """Lets the request pass.

        Raises:
            AccessDeniedError: it may not.
        """


class OpenAccess:
    """Whoever knows a name may use it."""

    strict = False

    def check(self, peer: Peer, action: Action, name: str) -> None:
        """Lets every request pass."""


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    actions: list[Action]
    names: list[str]
    uid: int | str | None = None
    gid: int | str | None = None
    cgroup: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: list[_Rule] = []


@dataclass(frozen=True)
class Rule:
    """Who may do what; none stands for whoever, of users, groups or control groups.

    Attributes:
        uid: the effective user.
        gid: one of the groups.
        cgroup: says whether it is one of the control groups.
        actions: what is allowed.
        names: the names for which it is.
    """

    uid: int | None
    gid: int | None
    cgroup: Callable[[str], bool] | None
    actions: frozenset[Action]
    names: tuple[re.Pattern[str], ...]

    def allows(self, peer: Peer, action: Action, name: str) -> bool:
        """Whether this rule lets the request pass."""
        return (
            (self.uid is None or self.uid == peer.uid)
            and (self.gid is None or self.gid in peer.gids)
            and (self.cgroup is None or self.cgroup(peer.cgroup))
            and action in self.actions
            and any(pattern.fullmatch(name) for pattern in self.names)
        )


@dataclass(frozen=True)
class AllowList:
    """What a file allows, and nothing else."""

    rules: tuple[Rule, ...]

    @property
    def strict(self) -> bool:
        """Always."""
        return True

    def check(self, peer: Peer, action: Action, name: str) -> None:
        """Lets the request pass if one of the rules does.

        Raises:
            AccessDeniedError: none does.
        """
        if not any(rule.allows(peer, action, name) for rule in self.rules):
            who = f"user {peer.uid}, control group {peer.cgroup or 'unknown'}"
            raise AccessDeniedError(
                f"this program ({who}) may not {action} that name",
                hint="the agent's allow-list says who may; its administrator can add a rule",
            )


def load_allow_list(path: Path) -> AllowList:
    """The allow-list in ``path``.

    Raises:
        StorageError: it cannot be read; or others than root or this user may, and names are credentials.
        PemError: it is larger than `LIST_LIMIT`.
        UsageError: it is no allow-list, or names a user or a group that is not there.
    """
    check_private(path)
    return parse_allow_list(read_capped(path, limit=LIST_LIMIT), str(path))


def parse_allow_list(data: bytes, source: str) -> AllowList:
    """The allow-list in TOML; errors as `load_allow_list`, which say that it comes from ``source``."""
    try:
        file = msgspec.toml.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)
        raise UsageError(
            f"{source} is no allow-list: {text[:1].lower()}{text[1:200]}", hint="see: tpm-mtls agent run --help"
        ) from error
    return AllowList(tuple(_rule(rule, f"rule {number} of {source}") for number, rule in enumerate(file.allow, 1)))


def _rule(rule: _Rule, where: str) -> Rule:
    if rule.uid is None and rule.gid is None and rule.cgroup is None:
        raise UsageError(f"{where} applies to nobody", hint='give its uid, gid or cgroup; for all: cgroup = "/**"')
    if not rule.actions or not rule.names:
        raise UsageError(f"{where} allows nothing", hint="give its actions and its names")
    return Rule(
        uid=_number(rule.uid, lambda name: pwd.getpwnam(name).pw_uid, f"the user of {where}"),
        gid=_number(rule.gid, lambda name: grp.getgrnam(name).gr_gid, f"the group of {where}"),
        cgroup=None if rule.cgroup is None else _cgroup(rule.cgroup, where),
        actions=frozenset(rule.actions),
        names=tuple(_pattern(name) for name in rule.names),
    )


def _number(given: int | str | None, look_up: Callable[[str], int], what: str) -> int | None:
    if not isinstance(given, str):
        return given
    try:
        return look_up(given)
    except KeyError as error:
        raise UsageError(f"there is no {given!r}, {what}", hint="give its number, or make it first") from error


def _cgroup(text: str, where: str) -> Callable[[str], bool]:
    """Says whether a control group is meant; part by part, as anybody may name the parts below its own."""
    if not text.startswith("/") or "**" in text.removesuffix("/**"):
        raise UsageError(
            f"{where} has no path of a control group", hint="such as /system.slice/app.service or /docker/**"
        )
    below = text.endswith("/**")
    patterns = [_pattern(part) for part in text.removesuffix("/**").split("/")]

    def matches(cgroup: str) -> bool:
        parts = cgroup.split("/") if cgroup != "/" else [""]
        if not cgroup or len(parts) < len(patterns) or (len(parts) > len(patterns) and not below):
            return False
        return all(pattern.fullmatch(part) for pattern, part in zip(patterns, parts, strict=False))

    return matches


def _pattern(text: str) -> re.Pattern[str]:
    """``text`` with ``*`` for any characters and ``?`` for any one; matched in at most length times length steps."""
    first, *others = ["".join("." if c == "?" else re.escape(c) for c in part) for part in text.split("*")]
    if others:
        *between, last = others
        # atomic: when a part was found, looking for it further on cannot help
        first += "".join(f"(?>.*?{part})" for part in between) + f".*{last}"
    return re.compile(first, re.DOTALL)
