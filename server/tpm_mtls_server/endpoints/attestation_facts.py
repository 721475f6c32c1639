"""Between the registry's rows and the pure verifier: what a quote is held against, and what is kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from tpm_mtls.errors import CredentialError, PolicyError
from tpm_mtls.policy.document import Signer, parse_signed_policy
from tpm_mtls.policy.states import parse_state
from tpm_mtls.structures import parse_public_area
from tpm_mtls_server.attestation import Approve, BootState, ClockState, Facts, IssuedNonce, Learn, Signed, Values
from tpm_mtls_server.attestation.policy import ALL_PCRS
from tpm_mtls_server.registry import Mode, ReferenceKind
from tpm_mtls_server.registry.background import Findings, Seen, Shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.attestation.messages import QuoteEvidence
    from tpm_mtls_server.attestation import AttestationTrust, Judgement, Policy
    from tpm_mtls_server.peer import DevicePeer
    from tpm_mtls_server.registry.background import Background, TakenNonce
    from tpm_mtls_server.registry.rows import Pcrs
    from tpm_mtls_server.revocation import RevocationLists

_T = TypeVar("_T")


def facts_of(
    background: Background,
    peer: DevicePeer,
    nonce: TakenNonce | None,
    *,
    trust: AttestationTrust,
    revocation: RevocationLists | None,
) -> Facts:
    """What a quote by ``peer`` is held against.

    Raises:
        PolicyError: a reference in the registry is damaged.
    """
    return Facts(
        device=peer.device,
        tpm=peer.tpm,
        nonce=None if nonce is None else IssuedNonce(nonce.nonce, nonce.device, nonce.expires),
        trust=trust,
        revocation=revocation,
        enrolled=frozenset(bytes.fromhex(name) for name in background.keys),
        clock=None if background.clock is None else msgspec.json.decode(background.clock, type=ClockState),
        policy=policy_of(background),
        baseline=_baseline(background),
    )


def policy_of(background: Background) -> Policy:
    """What a device's group wants of it.

    Raises:
        PolicyError: a reference in the registry is damaged.
    """
    pcrs = background.group.pcrs or ALL_PCRS
    match background.group.mode:
        case Mode.LEARN:
            return Learn(pcrs)
        case Mode.APPROVE:
            return Approve(pcrs)
        case Mode.VALUES:
            return Values(_parsed(background, ReferenceKind.VALUES, parse_state))
        case Mode.SIGNED:
            return Signed(
                signers=_parsed(background, ReferenceKind.SIGNER, _signer),
                policies=_parsed(background, ReferenceKind.SIGNED, parse_signed_policy),
            )


def findings_of(judgement: Judgement) -> Findings:
    """What the registry keeps of ``judgement``."""
    seen = judgement.seen
    return Findings(
        trusted=judgement.trusted,
        check=judgement.check,
        pending=judgement.pending,
        reason=judgement.text,
        differences=judgement.differences,
        clock=None if judgement.clock is None else msgspec.json.encode(judgement.clock).decode(),
        seen=None if seen is None else Seen(seen.hex_pcrs(), seen.event_log),
        learn=judgement.learned,
    )


def shown_by(evidence: QuoteEvidence) -> Shown:
    """What the registry keeps of ``evidence``."""
    try:
        key = parse_public_area(evidence.attestation_key).name.hex()
    except CredentialError:
        key = ""
    pcrs: Pcrs = {bank: dict(of) for bank, of in evidence.pcrs.items()}
    return Shown(key, evidence.attest, evidence.signature, pcrs, evidence.endorsement_key)


def _baseline(background: Background) -> BootState | None:
    """The device's baseline; one that was only learned is nothing that an operator approved."""
    found = background.baseline
    if found is None or (background.group.mode is Mode.APPROVE and not found.accepted_by):
        return None
    return BootState.of_hex(found.pcrs, found.event_log, at=found.at)


def _parsed(background: Background, kind: ReferenceKind, parse: Callable[[bytes, str], _T]) -> tuple[_T, ...]:
    return tuple(
        parse(each.content.encode(), f"reference {each.id} of the group {each.group}")
        for each in background.references
        if each.kind is kind
    )


def _signer(content: bytes, name: str) -> Signer:
    try:
        return msgspec.json.decode(content, type=Signer)
    except msgspec.DecodeError as error:
        raise PolicyError(f"{name} is no signer", hint="remove it, and add it again") from error
