"""Check 1: whose chips are genuine. After each success the same with one thing wrong, and the exact refusal."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from support.evidence import (
    DAY,
    EK_CERTIFICATE,
    NOW,
    Certifier,
    ca_extensions,
    der,
    ek_extensions,
    key_usage,
    new_key,
    new_root,
    tpm_names,
)
from tpm_mtls.certificates import load_certificates
from tpm_mtls.errors import EvidenceError, EvidenceRefusedError, PemError
from tpm_mtls_pki.evidence import EkTrust, check_endorsement
from tpm_mtls_pki.evidence.challenge import parse_certificate

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
CLIENT = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")])
ANY = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.5.29.37.0")])
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.23.133.11.1"), None)])
CA = x509.BasicConstraints(ca=True, path_length=None)


@pytest.fixture(scope="module")
def root() -> Certifier:
    return new_root()


@pytest.fixture(scope="module")
def maker(root: Certifier) -> Certifier:
    """An intermediate of the maker."""
    return root.below("Maker Intermediate")


def judge(
    certificate: x509.Certificate, *chain: x509.Certificate, root: Certifier, trust: EkTrust | None = None
) -> str:
    return check_endorsement(certificate, chain, trust or EkTrust((root.certificate,)), now=NOW)


def refused(match: str) -> pytest.RaisesExc[EvidenceRefusedError]:
    return pytest.raises(EvidenceRefusedError, match=match, check=lambda error: error.check == 1)


def test_a_genuine_chip_is_accepted_whoever_brings_the_intermediate(root: Certifier, maker: Certifier) -> None:
    certificate = maker.certify("", new_key().public_key(), ek_extensions())
    wanted = "CN=Maker Root"
    assert judge(certificate, maker.certificate, root=root) == wanted
    trust = EkTrust((root.certificate,), (maker.certificate,))
    assert judge(certificate, root=root, trust=trust) == wanted
    with refused("leads to no trusted TPM maker: no CA of it issued that"):
        judge(certificate, root=root)


def test_an_rsa_key_is_for_encipherment(root: Certifier) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    usage = (key_usage("key_encipherment"), True)
    assert judge(root.certify("", key, ek_extensions(usage=usage)), root=root)
    with refused(r"no key usage of an endorsement key \(keyEncipherment\)"):
        judge(root.certify("", key, ek_extensions()), root=root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usage": (key_usage("digital_signature"), True)}, r"no key usage of an endorsement key \(keyAgreement\)"),
        ({"usage": (key_usage("key_encipherment"), True)}, "no key usage of an endorsement key"),
        ({"usage": (key_usage("key_agreement", "key_cert_sign"), True)}, "no key usage of an endorsement key"),
        ({"usage": None}, "no key usage of an endorsement key"),
        ({"purpose": None}, "has another purpose"),
        ({"purpose": (CLIENT, False)}, "has another purpose"),
        ({"purpose": (ANY, False)}, "has another purpose"),
        ({"constraints": (CA, True)}, "is a CA's"),
        ({"names": None}, "does not tell the TPM's manufacturer"),
        ({"names": (tpm_names(manufacturer=None), True)}, "does not tell the TPM's manufacturer"),
        ({"names": (tpm_names(model=None), True)}, "does not tell the TPM's model"),
        ({"names": (tpm_names(version=None), True)}, "does not tell the TPM's version"),
        ({"names": (x509.SubjectAlternativeName([x509.DNSName("tpm.example")]), True)}, "TPM's manufacturer"),
        ({"more": (UNKNOWN, True)}, "contains unaccounted-for critical extensions"),
    ],
)
def test_a_certificate_that_does_not_follow_the_profile_is_refused(
    root: Certifier, changes: dict[str, tuple[x509.ExtensionType, bool] | None], message: str
) -> None:
    with refused(message):
        judge(root.certify("", new_key().public_key(), ek_extensions(**changes)), root=root)


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": None},  # then it is no CA's either
        {"names": (tpm_names(), False)},  # with a subject it need not be critical
        {"more": (UNKNOWN, False)},
        {"more": (POLICIES, False)},
    ],
)
def test_what_the_profile_leaves_open_is_accepted(
    root: Certifier, changes: dict[str, tuple[x509.ExtensionType, bool] | None]
) -> None:
    assert judge(root.certify("chip", new_key().public_key(), ek_extensions(**changes)), root=root)


def test_an_expired_certificate_is_refused_and_one_from_the_future(root: Certifier) -> None:
    key = new_key().public_key()
    with refused("the EK certificate expired at"):
        judge(root.certify("", key, ek_extensions(), start=NOW - 2 * DAY, end=NOW - DAY), root=root)
    with refused("the EK certificate is valid only from"):
        judge(root.certify("", key, ek_extensions(), start=NOW + DAY), root=root)


def test_nobody_is_trusted_before_the_administrator_says_so(root: Certifier) -> None:
    certificate = root.certify("", new_key().public_key(), ek_extensions())
    with refused("no TPM maker is trusted"):
        judge(certificate, root=root, trust=EkTrust())
    # the applicant's own root does not become one, nor does an intermediate of the store
    for trust in (
        EkTrust((new_root("Other").certificate,)),
        EkTrust((new_root("Other").certificate,), (root.certificate,)),
    ):
        with refused("leads to no trusted TPM maker"):
            judge(certificate, root.certificate, root=root, trust=trust)


def test_a_root_of_the_same_name_is_not_enough(root: Certifier) -> None:
    impostor = new_root()
    with refused("leads to no trusted TPM maker"):
        judge(impostor.certify("", new_key().public_key(), ek_extensions()), impostor.certificate, root=root)


def test_a_self_made_certificate_is_refused(root: Certifier) -> None:
    key = new_key()
    own = Certifier(key, root.certificate)  # names the maker, signs with its own key
    with refused("leads to no trusted TPM maker"):
        judge(own.certify("", key.public_key(), ek_extensions()), root=root)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (ek_extensions(), ""),  # the chain leads through the certificate of another chip
        (ca_extensions(constraints=None), ""),
        (ca_extensions(constraints=(x509.BasicConstraints(ca=False, path_length=None), True)), ""),
        (ca_extensions(usage=(key_usage("crl_sign"), True)), ""),
        (ca_extensions(usage=None), ""),
        (ca_extensions(purpose=(CLIENT, False)), ""),
        (ca_extensions(more=(UNKNOWN, True)), "unaccounted-for critical extensions"),
    ],
)
def test_a_chain_through_what_is_no_makers_ca_is_refused(
    root: Certifier, extensions: list[tuple[x509.ExtensionType, bool]], message: str
) -> None:
    between = root.below("Between", extensions)
    with refused(f"leads to no trusted TPM maker: .*{message}"):
        judge(between.certify("", new_key().public_key(), ek_extensions()), between.certificate, root=root)


@pytest.mark.parametrize("purpose", [x509.ExtendedKeyUsage([EK_CERTIFICATE]), ANY])
def test_a_ca_that_says_what_it_certifies_may_certify_endorsement_keys(
    root: Certifier, purpose: x509.ExtendedKeyUsage
) -> None:
    between = root.below("Between", ca_extensions(purpose=(purpose, False)))
    assert judge(between.certify("", new_key().public_key(), ek_extensions()), between.certificate, root=root)


def test_path_lengths_and_dates_of_cas_hold(root: Certifier) -> None:
    short = root.below("Short", ca_extensions(constraints=(x509.BasicConstraints(ca=True, path_length=0), True)))
    key = new_key().public_key()
    assert judge(short.certify("", key, ek_extensions()), short.certificate, root=root)
    longer = short.below("Longer")
    with refused("leads to no trusted TPM maker"):
        judge(longer.certify("", key, ek_extensions()), longer.certificate, short.certificate, root=root)
    old = root.below("Old", start=NOW - 3 * DAY, end=NOW - DAY)
    with refused("leads to no trusted TPM maker"):
        judge(old.certify("", key, ek_extensions()), old.certificate, root=root)
    old_root = new_root("Old Root", start=NOW - 3 * DAY, end=NOW - DAY)
    with refused("leads to no trusted TPM maker"):
        judge(old_root.certify("", key, ek_extensions()), root=old_root)


def test_a_maze_of_cas_is_given_up(root: Certifier) -> None:
    """Six CAs that all certified each other, with one name: the number of paths grows with their factorial."""
    key, name = new_key(), "Maze"
    first = new_root(name)
    maze = [
        Certifier(key, first.certificate).certify(name, key.public_key(), ca_extensions(), end=NOW + (n + 1) * DAY)
        for n in range(6)
    ]
    certificate = Certifier(key, maze[0]).certify("", new_key().public_key(), ek_extensions())
    with refused("Exceeded maximum signature check limit"):
        judge(certificate, *maze, root=root)


def test_a_certificate_of_the_first_version_is_refused(tmp_path: Path, root: Certifier) -> None:
    """It could say nothing about its use."""
    key, request, out = (str(tmp_path / name) for name in ("key.pem", "request.csr", "v1.der"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    commands = [
        ["openssl", "req", "-new", *curve, "-keyout", key, "-subj", "/CN=chip", "-out", request],
        ["openssl", "x509", "-req", "-in", request, "-signkey", key, "-outform", "DER", "-out", out],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    certificate = parse_certificate((tmp_path / "v1.der").read_bytes())
    assert certificate.version is x509.Version.v1
    with refused("is not of version 3"):
        judge(certificate, root=root)


def test_certificates_from_outside_are_capped_and_must_parse(root: Certifier) -> None:
    good = der(root.certificate)
    assert parse_certificate(good) == root.certificate
    for data in (b"", b"nonsense", good[:-1], good + b"\0"):
        with pytest.raises(EvidenceError, match="a certificate of the evidence is damaged"):
            parse_certificate(data)
    with pytest.raises(EvidenceError, match="a certificate of more than 4096 bytes"):
        parse_certificate(good + bytes(4096))


def test_swtpms_own_chains_pass_as_they_do_with_openssl(genuine_tpm: SimulatedTpm, tmp_path: Path) -> None:
    """And the two disagree in nothing when the intermediate is missing."""
    folder, now = genuine_tpm.simulator.folder, datetime.now(UTC)
    (root,) = load_certificates(folder / "ca" / "swtpm-localca-rootca-cert.pem")
    (between,) = load_certificates(folder / "ca" / "issuercert.pem")
    found = sorted((folder / "state").glob("ek-*.crt"))
    assert len(found) == 2
    for path in found:
        certificate = parse_certificate(path.read_bytes())
        assert check_endorsement(certificate, [between], EkTrust((root,)), now=now) == "CN=swtpm-localca-rootca"
        with refused("leads to no trusted TPM maker"):
            check_endorsement(certificate, [], EkTrust((root,)), now=now)
        pem = tmp_path / "ek.pem"
        subprocess.run(["openssl", "x509", "-inform", "DER", "-in", path, "-out", pem], check=True)
        command: list[str | Path] = [
            "openssl",
            "verify",
            "-x509_strict",
            "-CAfile",
            folder / "ca" / "swtpm-localca-rootca-cert.pem",
        ]
        with_it = [*command, "-untrusted", folder / "ca" / "issuercert.pem", pem]
        # openssl's own notion of critical extensions: it knows the alternative name
        assert subprocess.run(with_it, capture_output=True, check=False).returncode == 0
        assert subprocess.run([*command, pem], capture_output=True, check=False).returncode != 0


def test_a_key_that_nobody_can_read_is_an_error_of_ours(root: Certifier) -> None:
    certificate = der(root.certify("", new_key().public_key(), ek_extensions()))
    point = certificate.index(b"\x03\x42\x00\x04") + 4
    with pytest.raises((PemError, EvidenceError)):
        parse_certificate(certificate[:point] + bytes(64) + certificate[point + 64 :])
