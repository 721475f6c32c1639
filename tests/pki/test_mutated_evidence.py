"""Sound evidence, changed anywhere by anything: none is accepted, and nothing but errors of our own comes of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Name
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from support.authority import copy_ca
from support.evidence import Case, SoftwareTpm, der, good_case, new_root
from support.evil_device import trust
from tpm_mtls.certification_request import build_csr
from tpm_mtls.errors import EvidenceError, PemError, TpmMtlsError
from tpm_mtls.evidence import OID_ATTESTATION, encode_bundle
from tpm_mtls_pki.authority import open_authority
from tpm_mtls_pki.clock import utc_now
from tpm_mtls_pki.evidence import make_activation
from tpm_mtls_pki.groups import DEFAULT, ApprovalRule, Group, save
from tpm_mtls_pki.issuance import Credentials, Issued, Registrar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tpm_mtls_pki.profiles import Issuer

EXAMPLES = settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def changes(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with one to three changes: a bit, a byte, a piece removed, doubled, moved, or put in from nowhere."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.integers(1, 8)))
        before, piece, after = data[:start], data[start:end], data[end:]
        kind = draw(st.sampled_from(["bit", "byte", "remove", "double", "move", "insert", "cut"]))
        if kind == "bit" and piece:
            piece = bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:]
        elif kind == "byte" and piece:
            piece = bytes([draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))]) + piece[1:]
        elif kind == "remove":
            piece = b""
        elif kind == "double":
            piece *= 2
        elif kind == "move":
            before, piece = piece, before
        elif kind == "insert":
            piece = draw(st.binary(min_size=1, max_size=4)) + piece
        else:
            after = b""
        data = before + piece + after
    assume(data != whole)
    return data


@dataclasses.dataclass(frozen=True)
class Scene:
    """A CA, and evidence that it accepts."""

    registrar: Registrar
    tpm: SoftwareTpm
    case: Case

    @functools.cached_property
    def good(self) -> bytes:
        """The CSR that is accepted."""
        return self.request(encode_bundle(self.case.evidence))

    def request(self, bundle: bytes) -> bytes:
        """A CSR with that evidence, signed by the very key that it is for."""
        return build_csr(self.tpm.key, hashes.SHA256(), subject=Name([]), attributes={OID_ATTESTATION: bundle})

    def accepts(self, csr: bytes) -> bool:
        """Whether the CA issues a certificate for it, as the answer to an open exchange."""
        nobody = Credentials(None, None, None)
        try:
            outcome = self.registrar.enroll(nobody, csr, renewal=False, challenge=self.case.challenge)
        except TpmMtlsError:  # nothing else may come of it
            return False
        return isinstance(outcome, Issued)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, ca_template: Path, template_issuer: Issuer) -> Iterator[Scene]:
    maker, tpm = new_root(), SoftwareTpm()
    with open_authority(copy_ca(ca_template, tmp_path_factory.mktemp("mutated") / "ca")) as authority:
        registrar = Registrar(authority, template_issuer, utc_now)
        trust(registrar, maker.certificate)
        with authority.database.writing() as connection:
            save(connection, Group(DEFAULT, approval=ApprovalRule.NEVER), now=utc_now())
        yield Scene(registrar, tpm, good_case(tpm, maker))


def test_unchanged_it_is_accepted(scene: Scene) -> None:
    assert scene.accepts(scene.good)


@pytest.mark.parametrize("part", ["attest", "signature", "public"])
@given(data=st.data())
@EXAMPLES
def test_a_changed_part_in_a_request_that_is_signed_anew(scene: Scene, part: str, data: st.DataObject) -> None:
    """The attacker has the TLS key: the request around it is sound."""
    evidence = scene.case.evidence
    wrong = data.draw(changes(getattr(evidence, part)))
    assert not scene.accepts(scene.request(encode_bundle(dataclasses.replace(evidence, **{part: wrong}))))


@given(data=st.data())
@EXAMPLES
def test_a_changed_bundle_in_a_request_that_is_signed_anew(scene: Scene, data: st.DataObject) -> None:
    wrong = data.draw(changes(encode_bundle(scene.case.evidence)))
    try:
        csr = scene.request(wrong)
    except ValueError:  # it is no DER, which the one who makes the request sees
        assume(False)
    assert not scene.accepts(csr)


@given(data=st.data())
@EXAMPLES
def test_a_changed_request(scene: Scene, data: st.DataObject) -> None:
    assert not scene.accepts(data.draw(changes(scene.good)))


@pytest.mark.parametrize("part", ["ek_certificate", "ek_public"])
@given(data=st.data())
@EXAMPLES
def test_a_changed_endorsement(scene: Scene, part: str, data: st.DataObject) -> None:
    """It is refused when the credential is asked for, or when the evidence comes, or it names the very same TPM.

    The last: attributes of an endorsement key that mean nothing may be anything; its key and all else are proved.
    """
    assert scene.case.challenge is not None
    activation = scene.case.challenge.activation
    assert activation is not None
    assert activation.ek_certificate is not None
    good = {"ek_certificate": der(activation.ek_certificate), "ek_public": activation.ek.data}
    changed = good | {part: data.draw(changes(good[part]))}
    try:
        made, *_ = make_activation(**changed, ek_chain=(), ak_public=activation.ak.data)
        # suppose that the attacker's TPM opened it
        verdict = scene.case.asked(**vars(made) | {"secret": activation.secret}).judge()
    except (EvidenceError, PemError):
        return
    assert part == "ek_public"
    assert verdict.ek_hash == scene.tpm.ek_hash
