"""What leads out where a key's policy does not hold; looks into the identity folder whether the key is the device's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.errors import IdentityError, PemError, StorageError
from tpm_mtls.identity import enroll_anew, load_record
from tpm_mtls.policy.remedies import after_other_boot_fixed, after_other_boot_signed, is_signed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.policy.check import Verdict
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy


def key_remedy(
    name: bytes,
    policy: Sequence[Assertion],
    verdict: Verdict,
    *,
    signed: Sequence[FoundPolicy],
    reference: str | None,
    state_dir: Path,
) -> str:
    """The hint for who may not use a key now.

    Args:
        name: the key's Name.
        policy: its policy.
        verdict: why that does not hold.
        signed: the signed policies there are.
        reference: how the user named it; none for the identity folder's key.
        state_dir: the identity folder, whose key it may be.
    """
    if is_signed(policy):
        return after_other_boot_signed(policy, verdict, signed, key=reference)
    return after_other_boot_fixed(policy, _enrolled_with(name, state_dir))


def _enrolled_with(name: bytes, state_dir: Path) -> str | None:
    """How the device enrolls anew, if its identity's key has that Name."""
    try:
        record = load_record(state_dir)
    except (IdentityError, PemError, StorageError):  # then it is at least not known to be the identity's
        return None
    return enroll_anew(state_dir, record) if record is not None and record.key_name == name.hex() else None
