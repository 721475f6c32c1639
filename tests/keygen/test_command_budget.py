"""How many TPM commands a key and its request cost: at most 4 with a storage root key, 7 without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.keys import FileForm, KeyForm, PersistentForm, create_key, load_key

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

SRK = ["CreatePrimary", "EvictControl", "FlushContext"]


@pytest.fixture
def trace(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandTrace:
    return CommandTrace(tpm, tmp_path, monkeypatch)


def key_and_request(
    trace: CommandTrace, form: KeyForm, *, look_first: bool = False, auth: Secret | None = None
) -> None:
    with open_tpm(trace.tcti) as opened:
        if look_first:
            opened.srk.read()  # not part of the count: the identity record names the storage root key anyway
        build_csr(opened, create_key(opened, KeyAlgorithm.ECC_P256, form, authorization=auth))


@pytest.fixture
def with_srk(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()


@pytest.mark.usefixtures("with_srk")
def test_with_a_storage_root_key_a_file_costs_three_and_a_handle_four(trace: CommandTrace, tmp_path: Path) -> None:
    key_and_request(trace, FileForm(tmp_path / "key.pem"))
    assert trace.commands() == ["CreateLoaded", "Sign", "FlushContext"]
    trace.restart()
    key_and_request(trace, PersistentForm())
    assert trace.commands() == ["CreateLoaded", "EvictControl", "Sign", "FlushContext"]


@pytest.mark.usefixtures("with_srk")
def test_an_authorization_value_costs_nothing_but_what_the_tpm_itself_asks_to_repeat(
    trace: CommandTrace, tmp_path: Path
) -> None:
    """At the first use of a key under lockout protection since its start the TPM notes that: TPM_RC_RETRY."""
    key_and_request(trace, FileForm(tmp_path / "first.pem"), auth=Secret(b"abc"))
    assert trace.commands() == ["CreateLoaded", "Sign=0x922", "Sign", "FlushContext"]
    trace.restart()
    key_and_request(trace, FileForm(tmp_path / "second.pem"), auth=Secret(b"abc"))
    assert trace.commands() == ["CreateLoaded", "Sign", "FlushContext"]


@pytest.mark.parametrize("persistent", [False, True])
def test_without_one_at_most_seven_once_it_is_known_to_be_absent(
    trace: CommandTrace, tmp_path: Path, *, persistent: bool
) -> None:
    form: KeyForm = PersistentForm() if persistent else FileForm(tmp_path / "key.pem")
    key_and_request(trace, form, look_first=True)
    look, *rest = trace.commands()
    assert look == "ReadPublic=0x18b"
    made = ["CreateLoaded", "EvictControl"] if persistent else ["CreateLoaded"]
    assert rest == [*SRK, *made, "Sign", "FlushContext"]
    assert len(rest) <= 7


def test_without_one_and_nobody_looked_one_more(trace: CommandTrace, tmp_path: Path) -> None:
    key_and_request(trace, FileForm(tmp_path / "key.pem"))
    assert trace.commands() == ["CreateLoaded=0x18b", *SRK, "CreateLoaded", "Sign", "FlushContext"]
    assert len(trace.commands()) <= 7


@pytest.mark.usefixtures("with_srk")
def test_a_request_for_an_existing_key_costs_two_or_three(trace: CommandTrace, tmp_path: Path) -> None:
    for form in (PersistentForm(), FileForm(tmp_path / "key.pem")):
        with open_tpm(trace.tcti) as opened:
            key = create_key(opened, KeyAlgorithm.ECC_P256, form)
        trace.restart()
        with open_tpm(trace.tcti) as opened:
            build_csr(opened, load_key(opened, key.reference))
        expected = ["ReadPublic", "Sign"] if isinstance(form, PersistentForm) else ["Load", "Sign", "FlushContext"]
        assert trace.commands() == expected
        trace.restart()
