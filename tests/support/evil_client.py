"""The catalogue of attackers, each a client that does everything right but one thing, and the check that refuses it.

None of them is weak: they have genuine TPMs, the EK certificates of others, stolen tokens and certificates, recordings
of honest enrollments. What they do is in `support.evil_keys`, `evil_messages` and `evil_names`; what they
have in `evil_device`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from support import evil_keys as keys
from support import evil_messages as messages
from support import evil_names as names
from support.evil_device import NONCE_LIFETIME, Stage
from support.reference_device import Answer

Play: TypeAlias = Callable[[Stage], Answer]

REFUSED: Final = (403, b"the request is refused\n")
"""The one answer to evidence that a check refused."""

TOO_LARGE: Final = (413, b"the request is too large\n")
UNAUTHORIZED: Final = (401, b"authorization is needed: evidence, a bootstrap token or a certificate\n")
FORBIDDEN: Final = (403, b"the current certificate is needed\n")


@dataclass(frozen=True)
class Attack:
    """An attacker.

    Attributes:
        play: what it does; returns the CA's answer.
        check: the number of the check that must refuse it; none where no evidence was sent.
        answer: status and body; any body if that is none.
        options: of the CA's EST server (`ServeOptions`).
    """

    play: Play
    check: int | None
    answer: tuple[int, bytes | None] = REFUSED
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.play.__name__


def _refused(check: int, *plays: Play) -> list[Attack]:
    return [Attack(play, check) for play in plays]


ATTACKS: Final = [
    Attack(keys.software_key, None, UNAUTHORIZED),
    *_refused(
        1,
        keys.endorsement_without_certificate,
        keys.endorsement_of_an_unknown_maker,
        keys.expired_endorsement,
        keys.endorsement_from_the_future,
        keys.self_made_endorsement,
        keys.endorsement_for_signing,
        keys.endorsement_for_tls,
        keys.chain_through_a_leaf,
    ),
    *_refused(2, keys.endorsement_of_another_chip),
    *_refused(3, keys.unrestricted_attestation_key, keys.attestation_key_that_can_leave),
    *_refused(4, messages.nonce_without_credential, messages.nonce_with_a_damaged_certificate),
    *_refused(
        5,
        keys.key_that_can_leave,
        keys.imported_key,
        keys.imported_key_claims_residency,
        keys.attestation_key_as_tls_key,
        keys.another_key_signs,
        messages.garbage_attestation,
        messages.garbage_signature,
        messages.garbage_public_area,
        messages.evidence_without_public_area,
        messages.evidence_twice,
        messages.evidence_with_two_values,
        messages.evidence_with_two_statements,
        messages.evidence_of_another_kind,
        messages.empty_evidence,
        messages.evidence_without_value,
        messages.evidence_of_empty_parts,
        messages.garbage_evidence,
        messages.garbage_request,
        messages.garbage_without_a_nonce,
        messages.garbage_beside_a_token,
        messages.request_that_is_no_base64,
        messages.oversized_evidence,
        messages.oversized_request,
    ),
    Attack(messages.huge_evidence, 5, TOO_LARGE),
    *_refused(
        6,
        keys.software_key_with_evidence_of_another,
        keys.other_key_of_the_tpm,
        messages.altered_request,
        messages.altered_request_beside_a_token,
        messages.request_signed_by_another_key,
    ),
    *_refused(
        7,
        keys.software_key_and_software_attestation_key,
        keys.unrestricted_attestation_key_claims_otherwise,
        keys.attestation_key_of_another_tpm,
        messages.evidence_without_a_nonce,
        messages.replayed_request,
        messages.replayed_evidence,
        messages.nonce_of_another_session,
        messages.nonce_of_another_exchange,
        messages.guessed_cookie,
        messages.guessed_secret,
        messages.nonce_without_its_secret,
        names.renewal_with_stale_evidence,
    ),
    Attack(messages.expired_nonce, 7, options={"nonce_lifetime": NONCE_LIFETIME}),
    *_refused(
        8,
        names.name_of_another_tpm_by_token,
        names.name_of_another_tpm_by_asking,
        names.second_name_for_a_tpm,
    ),
    Attack(names.downgrade_to_a_software_key, 8, UNAUTHORIZED),
    *_refused(9, names.renewal_by_another_tpm),
    Attack(names.renewal_with_a_software_key, 9, FORBIDDEN),
    Attack(messages.credential_for_a_damaged_certificate, None, (400, None)),
]
