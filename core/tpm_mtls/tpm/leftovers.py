"""What a killed process left in a TPM without resource manager, found again and flushed by the next one.

A resource manager flushes what a client leaves behind. A TPM without one (a simulator's socket, /dev/tpm0) keeps it
until its next reset, and is full after three objects or sessions. So a process that may be killed at work writes down
in a file what it is about to load, and then where it is; whoever opens that file after it flushes that. The rules:

1. Nothing is flushed where the machine was restarted since: the TPM was reset with it.
2. An object is flushed where its public area (or the part of it that the TPM does not choose) is as recorded: at its
   handle; wherever it is, if the process was killed before it knew the handle.
3. A session is flushed if its handle was known, and is there.
4. One whose handle was not known is flushed if there is exactly one that it can be: of its kind, and, where the TPM
   tells, as fresh as a new one (its policyDigest is zero). Somebody else's could be the one; a TPM that nobody can use
   until it is reset is worse.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tpm2_pytss.constants import TPM2_CAP

from tpm_mtls.errors import HandleNotFoundError, TpmRefusedError
from tpm_mtls.tpm.boundary import public_area

if TYPE_CHECKING:
    from tpm_mtls.tpm.ledger import Ledger, Loaded
    from tpm_mtls.tpm.resources import Resources

_HANDLES_AT_ONCE: Final = 64
_FIRST_TRANSIENT: Final = 0x80000000
_FIRST_SESSION: Final = 0x02000000  # TPM_HT_LOADED_SESSION: the handles in the answer tell the kinds (part 2, 7.2)
_KINDS: Final = {0x02: "hmac", 0x03: "policy"}


def flush_leftovers(resources: Resources, ledger: Ledger) -> None:
    """Flushes by the rules what ``ledger`` has from the process before; a command or two for each.

    Raises:
        TpmUnavailableError: the TPM does not answer; then all of it stays written down.
    """
    if not ledger.left:
        return
    for each in ledger.left:
        for handle in _matching(each, resources):
            with (
                suppress(HandleNotFoundError),
                resources.command("flush what a killed process left"),
                resources.reference(handle) as resource,
            ):
                resources.context.flush_context(resource)
    ledger.settle()


def _matching(left: Loaded, resources: Resources) -> list[int]:
    if left.kind == "object":
        handles = [left.handle] if left.handle else _handles(_FIRST_TRANSIENT, resources)  # 2
        return [handle for handle in handles if _is_object(left, handle, resources)]
    sessions = [handle for handle in _handles(_FIRST_SESSION, resources) if _KINDS.get(handle >> 24) == left.kind]
    if left.handle:
        return [left.handle] if left.handle in sessions else []  # 3
    found = [handle for handle in sessions if left.kind == "hmac" or _is_fresh(handle, resources)]
    return found if len(found) == 1 else []  # 4


def _handles(first: int, resources: Resources) -> list[int]:
    """As many as the TPM tells at once: it has room for three, and some have for a few more."""
    with resources.command("list what is loaded"):
        _, data = resources.context.get_capability(TPM2_CAP.HANDLES, first, _HANDLES_AT_ONCE)
    listed = data.data.handles
    return [int(listed[i]) for i in range(int(listed.count))]


def _is_object(left: Loaded, handle: int, resources: Resources) -> bool:
    try:
        with resources.command("read what is loaded"), resources.reference(handle) as resource:
            public, *_ = resources.context.read_public(resource)
    except TpmRefusedError:  # it is not there; or it is no key, but a hash sequence
        return False
    return public_area(public).data.startswith(bytes.fromhex(left.public))


def _is_fresh(handle: int, resources: Resources) -> bool:
    with resources.command("look at a policy session"), resources.reference(handle) as resource:
        return not any(bytes(resources.context.policy_get_digest(resource)))
