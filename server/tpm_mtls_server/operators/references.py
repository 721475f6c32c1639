"""What operators give as references: read from files strictly, verified, and kept as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from tpm_mtls.errors import PolicyError
from tpm_mtls.files import read_capped
from tpm_mtls.policy.document import LIMIT, Signer, encode, parse_signed_policy
from tpm_mtls.policy.signing import read_signer, verify_signed_policy
from tpm_mtls.policy.states import encode_state, parse_state, read_state_file
from tpm_mtls.policy.words import in_words
from tpm_mtls_server.registry import ReferenceKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read_values(path: Path) -> str:
    """The state of a machine in the file ``path``, as the registry keeps it.

    Raises:
        PolicyError: it is none.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    return encode_state(read_state_file(path)).decode()


def read_signer_key(path: Path) -> str:
    """The public key (PEM) of who signs policies in the file ``path``, as the registry keeps it.

    Raises:
        CredentialError: it is none, or a private one.
        StorageError: it cannot be read.
    """
    return msgspec.json.encode(read_signer(path)).decode()


def read_signed(path: Path, signers: Iterable[str]) -> str:
    """The signed policy in the file ``path``, as the registry keeps it.

    1. It is one.
    2. One of ``signers``, as `read_signer_key` gives them, signed it.

    Raises:
        PolicyError: a step failed.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    policy = parse_signed_policy(read_capped(path, limit=LIMIT), str(path))  # 1
    known = {signer.name: signer for signer in map(_signer, signers)}
    signer = known.get(policy.signer)
    if signer is None:  # 2
        raise PolicyError(
            f"{path} is signed by {policy.signer}, whose key the group does not have", hint="give it: --add-signer"
        )
    verify_signed_policy(policy, signer, name=str(path))
    return encode(policy).decode()


def describe(kind: ReferenceKind, content: str) -> str:
    """A reference that was read above, in words."""
    data = content.encode()
    match kind:
        case ReferenceKind.VALUES:
            state = parse_state(data, "the registry")
            return f"values {state.description!r}: {in_words(state.pcrs)}"
        case ReferenceKind.SIGNED:
            signed = parse_signed_policy(data, "the registry")
            return f"signed policy {signed.description!r}, version {signed.version}: {in_words(signed.policy)}"
        case ReferenceKind.SIGNER:
            return f"signer {_signer(content).name}"
        case _:
            assert_never(kind)


def _signer(content: str) -> Signer:
    return msgspec.json.decode(content, type=Signer)
