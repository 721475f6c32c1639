"""What the present values of the PCRs are compared with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tpm_mtls.errors import PolicyError
from tpm_mtls.files import read_capped
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.policy.document import LIMIT, parse_policy, parse_signed_policy
from tpm_mtls.policy.files import POLICY_SUFFIX, SIGNED_SUFFIX, find_signed_policies
from tpm_mtls.policy.remedies import after_other_boot_sealed, after_other_boot_signed, have_signed, is_signed, selection
from tpm_mtls.policy.states import parse_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tpm_mtls.policy.check import Verdict
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy


def record_anew(_: Verdict) -> str:
    """The remedy for values that are only compared with: no TPM holds anything against them."""
    return "if what has been booted is right, record its state anew: tpm-mtls policy record --out state.json"


class Baseline(NamedTuple):
    """Values that PCRs once had.

    Attributes:
        name: what says so, for people.
        policy: the values, as assertions of a policy.
        signed: the signed policies that count, where the policy leaves it to them; verified when they are judged.
        remedy: from why it does not hold, what to do about it; a hint.
    """

    name: str
    policy: Sequence[Assertion]
    signed: Sequence[FoundPolicy]
    remedy: Callable[[Verdict], str] = record_anew


def read_baseline(what: str | None, state_dir: Path, tcti: str | None) -> Baseline:
    """The values that ``what`` wants.

    Args:
        what: a state that ``policy record`` or ``pcr predict`` wrote, a policy file, what ``seal`` wrote, or a key with
            a policy beside it; the identity folder's key if none.
        state_dir: the identity folder.
        tcti: where the TPM is; asked only about a key at a handle.

    Raises:
        CredentialError: it is none of them, or the key has no policy.
        StorageError: it cannot be read.
    """
    if what is None or not what.endswith(".json"):
        return _of_sealed(what, state_dir) or _of_key(what, state_dir, tcti)
    path = Path(what)
    data = read_capped(path, limit=LIMIT)
    if what.endswith(SIGNED_SUFFIX):
        policy = parse_signed_policy(data, what)
        again = have_signed(selection(policy.policy), policy.version + 1)
        return Baseline(what, policy.policy, (), lambda _: f"if what has been booted is right, have it signed: {again}")
    if what.endswith(POLICY_SUFFIX):
        document = parse_policy(data, what)
        return _of_policy(
            what, bytes.fromhex(document.name), document.policy, [path.absolute().parent], None, state_dir
        )
    return Baseline(what, parse_state(data, what).pcrs, ())


def _of_sealed(what: str | None, state_dir: Path) -> Baseline | None:
    from tpm_mtls.sealed_blob import find_blob  # noqa: PLC0415 - imports tpm2-pytss's types

    path = Path(what or "")
    blob = find_blob(path) if what is not None else None
    if blob is None:
        return None
    if not blob.policy:
        raise PolicyError(f"{what} has no policy: it is unsealed whatever was booted", hint="seal it with --pcrs")
    policy = blob.policy
    signed, _ = find_signed_policies([path.absolute().parent, state_dir])
    if is_signed(policy):
        return Baseline(str(path), policy, signed, lambda verdict: after_other_boot_signed(policy, verdict, signed))
    return Baseline(str(path), policy, signed, lambda _: after_other_boot_sealed(policy, str(path)))


def _of_key(reference: str | None, state_dir: Path, tcti: str | None) -> Baseline:
    from tpm_mtls.identity import CERTIFICATE, load_identity  # noqa: PLC0415 - only where a key is meant
    from tpm_mtls.policy.key_policy import key_policy, read_public_area, require_policy  # noqa: PLC0415 - the same
    from tpm_mtls.relay import policy_folders  # noqa: PLC0415 - the same

    key = parse_key_reference(reference) if reference is not None else load_identity(state_dir).key
    folders = policy_folders(key, state_dir / CERTIFICATE)
    found = key_policy(read_public_area(key, tcti), folders)
    return _of_policy(str(key), found.public.name, require_policy(found).policy, folders, reference, state_dir)


def _of_policy(
    what: str,
    name: bytes,
    policy: Sequence[Assertion],
    folders: Sequence[Path],
    reference: str | None,
    state_dir: Path,
) -> Baseline:
    """The values that ``policy`` of the key with the Name ``name`` wants, or those signed for it in ``folders``."""
    from tpm_mtls.policy.key_remedy import key_remedy  # noqa: PLC0415 - only where a key is meant

    signed, _ = find_signed_policies(folders)
    remedy = partial(key_remedy, name, policy, signed=signed, reference=reference, state_dir=state_dir)
    return Baseline(what, policy, signed, remedy)
