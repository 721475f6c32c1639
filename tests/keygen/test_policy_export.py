"""Key files with the standard's policy fields, for tools that know them: read back with openssl and tpm2-tools."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.policies import Operator, make_policy_key, pcr_policy, present_state, trial_digest
from tpm_mtls.cli import run
from tpm_mtls.errors import CredentialError
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr, encode
from tpm_mtls.policy.files import find_signed_policies
from tpm_mtls.structures import parse_tss2_pem
from tpm_mtls_keygen.export import export_key

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: SimulatedTpm) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)


def structure(path: Path) -> list[str]:
    """The file's DER as openssl sees it: one value a line."""
    shown = subprocess.run(["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True).stdout
    return [re.sub(r".*(prim|cons): ", "", line).strip() for line in shown.splitlines()]


def test_a_policy_of_pcrs_is_what_satisfies_it(tpm: SimulatedTpm, tmp_path: Path) -> None:
    policy = (*present_state(tpm, "sha256:0,7").pcrs, PolicyAuthValue())
    make_policy_key(tpm, tmp_path / "key.pem", *policy)

    assert run(["keygen", "export", "--key", "key.pem", "--out", "out.pem"]) == 0

    values = structure(tmp_path / "out.pem")
    at = values.index("INTEGER           :017F")  # TPM_CC_PolicyPCR
    # TPM2B_DIGEST pcrDigest, TPML_PCR_SELECTION: one bank, SHA-256, 3 bytes, PCRs 0 and 7
    assert values[at + 2] == f"OCTET STRING      [HEX DUMP]:0020{policy[0].digest.upper()}00000001000B03810000"
    assert values[at + 5 : at + 8 : 2] == ["INTEGER           :016B", "OCTET STRING"]  # PolicyAuthValue, no parameters
    exported = parse_tss2_pem((tmp_path / "out.pem").read_bytes())
    assert exported.has_policy
    assert exported.public == parse_tss2_pem((tmp_path / "key.pem").read_bytes()).public
    assert (tmp_path / "out.pem").stat().st_mode & 0o777 == 0o600
    commands = [["tpm2_policypcr", "-S", "SESSION", "-l", "sha256:0,7"], ["tpm2_policyauthvalue", "-S", "SESSION"]]
    assert trial_digest(tpm, tmp_path, commands) == exported.public.policy


def test_signed_policies_go_into_the_field_for_them(tpm: SimulatedTpm, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    make_policy_key(tpm, tmp_path / "key.pem", operator.authorize(b"web"))
    good = operator.sign(pcr_policy(), version=2, policy_ref=b"web", description="image 2")
    nameless = operator.sign(pcr_policy(), version=1, policy_ref=b"web")
    counted = operator.sign(pcr_policy(), not_beyond(DEFAULT_COUNTER, 3), version=3, policy_ref=b"web")
    other = operator.sign(pcr_policy(), version=9)
    for number, signed in enumerate((good, nameless, counted, other)):
        (tmp_path / f"{number}.signed-policy.json").write_bytes(encode(signed))

    assert run(["keygen", "export", "--key", "key.pem", "--out", "out.pem"]) == 0

    values = structure(tmp_path / "out.pem")
    public = f"{len(operator.signer.public) // 2:04x}{operator.signer.public}".upper()
    unsigned = f"{public}0003{b'web'.hex()}0010".upper()
    first = f"{public}0003{b'web'.hex()}{good.signature}".upper()
    assert values.count("INTEGER           :016A") == 3  # policy, and two in authPolicy
    assert f"OCTET STRING      [HEX DUMP]:{unsigned}" in values
    at = values.index("UTF8STRING        :image 2")
    assert f"OCTET STRING      [HEX DUMP]:{first}" in values[at : at + 9]
    assert "UTF8STRING        :version 1" in values
    assert values.count("INTEGER           :017F") == 2
    parse_tss2_pem((tmp_path / "out.pem").read_bytes())


def test_what_the_form_cannot_express_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    choice = PolicyOr(branches=((pcr_policy(),), (PolicyAuthValue(),)))
    document = make_policy_key(tpm, tmp_path / "key.pem", choice)
    key = parse_tss2_pem((tmp_path / "key.pem").read_bytes())
    assert policy_digest(document.policy) == key.public.policy
    with pytest.raises(CredentialError, match="cannot express a policy with alternatives"):
        export_key(key, document, find_signed_policies([tmp_path])[0])
    assert run(["keygen", "export", "--key", "key.pem", "--out", "out.pem"]) == 5
    assert not (tmp_path / "out.pem").exists()


def test_a_key_without_policy_is_as_it_was(tpm: SimulatedTpm, tmp_path: Path) -> None:
    assert run(["keygen", "create", "--out", "key.pem", "--tcti", tpm.tcti]) == 0
    assert run(["keygen", "export", "--key", "key.pem", "--out", "out.pem"]) == 0
    assert (tmp_path / "out.pem").read_bytes() == (tmp_path / "key.pem").read_bytes()
    assert run(["keygen", "export", "--key", "key.pem", "--out", "out.pem"]) == 10
    assert run(["keygen", "export", "--key", "handle:0x81000100", "--out", "b.pem"]) == 2
