"""Groups of devices, and the rules for each; ``default`` is there without being made."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tpm_mtls.errors import UsageError
from tpm_mtls_pki import audit
from tpm_mtls_pki.schema import groups, select_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

DEFAULT: Final = "default"
"""The group of TPMs that are not on the allow-list."""

ANY: Final = "any"
"""Stands for every authorization policy, and for none."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_POLICY_LENGTHS = (0, 32, 48, 64)  # bytes of a digest; none for no policy
_POLICIES_LIMIT = 16

_BY_NAME = select_by(groups.c.name)


class ApprovalRule(enum.Enum):
    """Whose first certificate an administrator has to approve."""

    NEVER = "never"
    """Nobody's: every TPM of a trusted maker enrolls by itself."""

    UNLISTED = "unlisted"
    """TPMs that are not on the allow-list, and come without token and certificate."""

    ALWAYS = "always"
    """Everybody's."""


class Naming(enum.Enum):
    """How a device is named that has no name from the allow-list, a token, a certificate or an approval."""

    EK = "ek"
    """After its endorsement key."""

    ASKED = "asked"
    """As it asks, which an administrator has to approve."""


@dataclass(frozen=True)
class Group:
    """The rules for a group.

    Attributes:
        name: its name.
        approval: whose first certificate has to be approved.
        naming: how devices are named.
        imported: whether TLS keys will do that were not born in the TPM.
        policies: acceptable authorization policies of TLS keys (digests; the empty one for a key without); none for
            any, or none at all.
    """

    name: str
    approval: ApprovalRule = ApprovalRule.UNLISTED
    naming: Naming = Naming.EK
    imported: bool = False
    policies: frozenset[bytes] | None = frozenset({b""})


def find(connection: Connection, name: str) -> Group:
    """The group called ``name``; one that nobody made has the usual rules."""
    row = connection.execute(_BY_NAME, {"wanted": name}).one_or_none()
    return _group(row) if row else Group(name)


def listing(connection: Connection) -> list[Group]:
    """All groups, ``default`` included, by name."""
    found = {group.name: group for group in map(_group, connection.execute(groups.select()))}
    return [group for _, group in sorted(({DEFAULT: Group(DEFAULT)} | found).items())]


def save(connection: Connection, group: Group, *, now: datetime) -> None:
    """Makes or changes a group.

    Raises:
        UsageError: an unusable name, no policy at all, or too many.
    """
    check_group_name(group.name)
    if group.policies is not None and not 1 <= len(group.policies) <= _POLICIES_LIMIT:
        raise UsageError(
            f"a group has 1 to {_POLICIES_LIMIT} key policies", hint="'none' stands for keys without a policy"
        )
    facts: dict[str, Any] = {
        "approval": group.approval.value,
        "naming": group.naming.value,
        "imported": group.imported,
        "policies": [ANY] if group.policies is None else sorted(each.hex() for each in group.policies),
    }
    connection.execute(groups.delete().where(groups.c.name == group.name))
    values = facts | {"policies": msgspec.json.encode(facts["policies"]).decode()}
    connection.execute(groups.insert().values(name=group.name, **values))
    audit.append(connection, "group-set", group.name, facts, now=now)


def check_group_name(name: str) -> str:
    """Returns ``name`` if it can name a group.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a group's name: {name[:40]!r}", hint="lower-case letters, digits, . _ -; at most 32")
    return name


def parse_policies(texts: Sequence[str]) -> frozenset[bytes] | None:
    """The policy digests in ``texts``, as `Group` has them: each as `parse_policy` takes it, or ``any`` alone.

    Raises:
        UsageError: as `parse_policy`, or ``any`` and something else.
    """
    if ANY not in texts:
        return frozenset(parse_policy(each) for each in texts)
    if len(texts) > 1:
        raise UsageError("any policy, and a certain one, are contradictory", hint="give 'any' alone, or leave it out")
    return None


def parse_policy(text: str) -> bytes:
    """The policy digest in hexadecimal ``text``; the empty one for ``none``.

    Raises:
        UsageError: it is none.
    """
    try:
        digest = b"" if text == "none" else bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"not a policy digest: {text[:40]!r}", hint="hexadecimal, 'none', or 'any'") from error
    if len(digest) not in _POLICY_LENGTHS or (not digest and text != "none"):
        raise UsageError(
            f"no policy digest has {len(digest)} bytes", hint="tpm-mtls policy show prints one, 32 bytes for SHA-256"
        )
    return digest


def _group(row: Row[Any]) -> Group:
    policies = msgspec.json.decode(row.policies, type=list[str])
    return Group(
        name=row.name,
        approval=ApprovalRule(row.approval),
        naming=Naming(row.naming),
        imported=row.imported,
        policies=None if policies == [ANY] else frozenset(bytes.fromhex(each) for each in policies),
    )
