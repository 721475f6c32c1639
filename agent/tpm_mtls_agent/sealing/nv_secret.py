"""Secrets in NV indices of the TPM: no file is needed to get them back, as early in the boot as one likes.

The agent's own secrets are elsewhere (`tpm_mtls_agent.storage.store`): these are made by hand, as by tpm2_nvdefine.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import HandleOccupiedError, TpmMtlsError, TpmRefusedError, UsageError
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.structures.nv_public import NvAttribute, NvPublic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.tpm import Tpm

NV_INDICES: Final = range(0x01000000, 0x01C00000)
"""NV indices for secrets: below those that the TCG keeps for certificates (Registry of Reserved TPM 2.0 Handles)."""

OUR_INDICES: Final = range(0x01500000, 0x01530000)
"""Where the device's certificate, the policies' counter and the agent's secrets are."""

_OFFSET_LIMIT: Final = 0x00FFFFFF
_NOT_WRITTEN: Final = 0x14A  # TPM_RC_NV_UNINITIALIZED
_NOT_AUTHORIZED: Final = 0x149  # TPM_RC_NV_AUTHORIZATION
_READABLE: Final = NvAttribute.OWNERREAD | NvAttribute.AUTHREAD | NvAttribute.POLICYREAD


def parse_index(text: str) -> int:
    """The NV index that ``text`` gives in hexadecimal; as tpm2-tools have it, 0x2000A is short for 0x0102000A.

    Raises:
        UsageError: it gives none, or one that is kept for something else.
    """
    if not re.fullmatch(r"0[xX][0-9A-Fa-f]{1,8}", text):
        raise UsageError(f"not an NV index: {text[:40]!r}", hint="like 0x01800001")
    index = int(text, 16)
    index |= NV_INDICES.start if index <= _OFFSET_LIMIT else 0
    if index not in NV_INDICES or index in OUR_INDICES:
        raise UsageError(
            f"the NV index {index:#010x} is kept for something else",
            hint="the owner's begin at 0x01800000; see what is used: tpm2_getcap handles-nv-index",
        )
    return index


def nv_public(index: int, size: int, *, policy: Sequence[Assertion] = (), with_authorization: bool) -> NvPublic:
    """What the NV index of a secret of ``size`` bytes is once it was written.

    It is read with its authorization value, with its policy where it has one, and written with its authorization
    value, without one by the owner hierarchy. Where the value is the empty one, which everybody knows, the TPM's
    dictionary-attack protection leaves it alone.
    """
    attributes = NvAttribute.POLICYREAD if policy else NvAttribute.AUTHREAD
    attributes |= NvAttribute.AUTHWRITE if with_authorization else NvAttribute.OWNERWRITE | NvAttribute.NO_DA
    return NvPublic(index, size, attributes, policy_digest(policy) if policy else b"")


def seal_into_nv(tpm: Tpm, public: NvPublic, secret: bytes, *, authorization: Secret | None = None) -> NvPublic:
    """Makes the NV index ``public`` (see `nv_public`) for ``secret``, and writes it; removes it again if that fails.

    Raises:
        HandleOccupiedError: something is at that index; it stays.
        TpmMemoryError: the NV memory is full.
        UsageError: ``secret`` is larger than any index of this TPM.
        AuthorizationError: the owner hierarchy has another authorization value.
        StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
    """
    largest = tpm.nv.largest()
    if len(secret) > largest:
        raise UsageError(
            f"the secret has {len(secret)} bytes, and this TPM's NV indices {largest} at the most",
            hint="seal it into a file: leave --nv out",
        )
    try:
        made = tpm.nv_secrets.define(public, authorization)
    except HandleOccupiedError as error:
        with suppress(TpmMtlsError):  # an index that is not an ordinary one
            if not tpm.nv_secrets.inspect(public.index).written:
                error.hint = (
                    "nothing was ever written to it: if a seal that was interrupted left it, remove it: "
                    f"tpm2_nvundefine {public.index:#010x}"
                )
        raise
    try:
        return tpm.nv_secrets.write(made, secret, authorization=authorization)
    except BaseException:
        with suppress(TpmMtlsError):  # the first error is the one to tell
            tpm.nv_secrets.undefine(tpm.nv_secrets.inspect(public.index))
        raise


def read_from_nv(
    tpm: Tpm,
    public: NvPublic,
    *,
    policy: Sequence[Assertion] = (),
    signed_policies: Sequence[FoundPolicy] = (),
    authorization: Secret | None = None,
) -> bytes:
    """What is in the NV index ``public``, of which `NvSecrets.inspect` told.

    Raises:
        TpmRefusedError: it was never written, or cannot be read at all.
        AuthorizationError: it has an authorization value, and none or another one is given.
        PolicyRefusedError, PolicyError, TpmLockoutError: see `tpm_mtls.tpm.nv_secrets`.
    """
    if not public.written:
        raise TpmRefusedError(
            f"nothing was ever written to NV {public.index:#010x} (TPM_RC_NV_UNINITIALIZED, {_NOT_WRITTEN:#05x})",
            hint="if what should have written it was interrupted, remove it and begin again: tpm2_nvundefine",
            rc=_NOT_WRITTEN,
        )
    if not public.attributes & _READABLE:
        raise TpmRefusedError(
            f"NV {public.index:#010x} cannot be read by its owner or with its own authorization",
            hint="its maker decides that",
            rc=_NOT_AUTHORIZED,
        )
    return tpm.nv_secrets.read(public, policy=policy, signed_policies=signed_policies, authorization=authorization)
