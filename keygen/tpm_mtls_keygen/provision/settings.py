"""What ``hardening.toml`` wants. Pure, apart from `load_settings`.

    [owner]
    authorization = "sealed:/var/lib/tpm-mtls/owner.sealed"     # or file:PATH; made where nothing is there

    [endorsement]
    authorization = "sealed:/var/lib/tpm-mtls/endorsement.sealed"
    keys = "certified"                    # the endorsement keys that stay in the TPM; or a list: ["L-1", "L-2"]

    [lockout]
    authorization = "file:/var/lib/tpm-mtls/lockout"
    max_tries = 10                        # wrong values until the TPM locks itself
    recovery_time = "2h"                  # one of them is forgotten after
    lockout_recovery = "24h"              # a wrong lockout authorization blocks that one for

    [platform]
    disable = true                        # until the next restart

What a section does not say stays as it is. The storage root key is made in any case.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from tpm_mtls.durations import parse_duration
from tpm_mtls.errors import UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.streams import read_input
from tpm_mtls.structures import EkTemplate
from tpm_mtls.tpm.hierarchies import Hierarchy
from tpm_mtls_keygen.provision.kept import Kept, parse_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMIT: Final = 64 * 1024
_MOST_TRIES: Final = 10_000

CERTIFIED: Final = "certified"


class _Owner(msgspec.Struct, forbid_unknown_fields=True):
    authorization: str | None = None


class _Endorsement(msgspec.Struct, forbid_unknown_fields=True):
    authorization: str | None = None
    keys: Literal["certified"] | list[str] = []


class _Lockout(msgspec.Struct, forbid_unknown_fields=True):
    authorization: str | None = None
    max_tries: int | None = None
    recovery_time: str | None = None
    lockout_recovery: str | None = None


class _Platform(msgspec.Struct, forbid_unknown_fields=True):
    disable: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    owner: _Owner = msgspec.field(default_factory=_Owner)
    endorsement: _Endorsement = msgspec.field(default_factory=_Endorsement)
    lockout: _Lockout = msgspec.field(default_factory=_Lockout)
    platform: _Platform = msgspec.field(default_factory=_Platform)


@dataclass(frozen=True)
class Settings:
    """What is wanted.

    Attributes:
        kept: where the authorization values of hierarchies are kept that shall have one.
        endorsement_keys: which keep a persistent handle, or `CERTIFIED`.
        max_tries: wrong values until the TPM is locked; none for as it is.
        recovery_time: seconds; none for as it is.
        lockout_recovery: seconds; none for as it is.
        disable_platform: whether the platform hierarchy is disabled.
    """

    kept: Mapping[Hierarchy, Kept] = field(default_factory=dict)
    endorsement_keys: Literal["certified"] | tuple[EkTemplate, ...] = ()
    max_tries: int | None = None
    recovery_time: int | None = None
    lockout_recovery: int | None = None
    disable_platform: bool = False

    @property
    def folders(self) -> frozenset[Path]:
        """Where the values are kept."""
        return frozenset(each.path.parent for each in self.kept.values())


def load_settings(path: Path) -> Settings:
    """What the file ``path`` wants; ``-`` is standard input, where relative paths begin at the working folder.

    Raises:
        UsageError: it is no TOML, or says something else than above.
        StorageError, PemError: it cannot be read, or is oversized.
    """
    if path == Path("-"):
        data = read_input(None, limit=_LIMIT, what="hardening file", typed=False)
        return parse_settings(data, "standard input", Path.cwd())
    return parse_settings(read_capped(path, limit=_LIMIT), str(path), path.absolute().parent)


def parse_settings(data: bytes, name: str, folder: Path) -> Settings:
    """What ``data`` wants, which was in the file ``name``; relative paths begin at ``folder``.

    Raises:
        UsageError: as `load_settings`.
    """
    try:
        found = msgspec.convert(tomllib.loads(data.decode()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        text = str(error)
        raise UsageError(
            f"{name} is no hardening file: {text[:1].lower()}{text[1:]}",
            hint="sections: owner, endorsement, lockout, platform; see docs/how-to/harden-the-tpm.md",
        ) from error
    sources = {
        Hierarchy.OWNER: found.owner.authorization,
        Hierarchy.ENDORSEMENT: found.endorsement.authorization,
        Hierarchy.LOCKOUT: found.lockout.authorization,
    }
    kept = {each: parse_kept(source, folder) for each, source in sources.items() if source is not None}
    # where links and .. lead: a value that overwrites another one's is lost for good
    if len({os.path.realpath(path) for each in kept.values() for path in (each.path, each.begun)}) < 2 * len(kept):
        raise UsageError(
            f"{name} keeps two authorization values in one file", hint="name another file for each hierarchy"
        )
    tries = found.lockout.max_tries
    if tries is not None and not 0 < tries <= _MOST_TRIES:
        raise UsageError(f"{name}: max_tries is {tries}", hint=f"expected 1 to {_MOST_TRIES}")
    return Settings(
        kept=kept,
        endorsement_keys=_templates(found.endorsement.keys, name),
        max_tries=tries,
        recovery_time=_seconds(found.lockout.recovery_time),
        lockout_recovery=_seconds(found.lockout.lockout_recovery),
        disable_platform=found.platform.disable,
    )


def _templates(names: Literal["certified"] | list[str], file: str) -> Literal["certified"] | tuple[EkTemplate, ...]:
    if names == CERTIFIED:
        return CERTIFIED
    known = {template.value: template for template in EkTemplate}
    for each in names:
        if each not in known:
            raise UsageError(
                f"{file}: there is no endorsement key {each[:20]!r}",
                hint=f'expected "certified", or a list of {", ".join(known)}',
            )
    return tuple(dict.fromkeys(known[each] for each in names))


def _seconds(text: str | None) -> int | None:
    return None if text is None else int(parse_duration(text))
