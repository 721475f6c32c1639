"""The machine's configuration file, and what goes before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.configuration import Configuration, load_configuration, parse_configuration, relay_use
from tpm_mtls.errors import PemError, StorageError, UsageError
from tpm_mtls.tcti import resolve_tcti


def load(text: str, folder: Path) -> Configuration:
    path = folder / "config.toml"
    path.write_text(text)
    return load_configuration({"TPM_MTLS_CONFIG": str(path)})


def test_all_settings(tmp_path: Path) -> None:
    text = 'relay = "never"\ntcti = "swtpm:port=1"\nlatency_model = "slb9670"\n'
    assert load(text, tmp_path) == Configuration("never", "swtpm:port=1", "slb9670")


def test_a_latency_model_in_a_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    assert load('latency_model = "chip.toml"', tmp_path).latency_model == str(tmp_path / "chip.toml")
    assert load('latency_model = "/etc/chip.toml"', tmp_path).latency_model == "/etc/chip.toml"


def test_the_default_file_need_not_be_there_but_counts_when_it_is(tmp_path: Path) -> None:
    default = tmp_path / "config.toml"
    assert load_configuration({}, default=default) == Configuration()
    default.write_text('relay = "always"')
    assert load_configuration({}, default=default) == Configuration(relay="always")
    assert load_configuration({"TPM_MTLS_CONFIG": ""}, default=default) == Configuration(relay="always")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"\$TPM_MTLS_CONFIG names .*missing.toml, which is not there"):
        load_configuration({"TPM_MTLS_CONFIG": str(tmp_path / "missing.toml")})
    (tmp_path / "large.toml").write_bytes(b"#" * 70_000)
    with pytest.raises(PemError, match="larger than"):
        load_configuration({"TPM_MTLS_CONFIG": str(tmp_path / "large.toml")})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('relays = "auto"', "an unknown setting: 'relays'"),
        ('[relay]\nuse = "auto"', "relay is no text"),
        ("relay = true", "relay is no text"),
        ('tcti = ""', "tcti is no text"),
        ('relay = "sometimes"', r"config\.toml: relay is 'sometimes'"),
        ("relay = auto", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_and_named(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        load(text, tmp_path)
    assert str(tmp_path / "config.toml") in str(refused.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageError, match="is no TOML"):
        parse_configuration(b"\xff\xfe", Path("config.toml"))


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    try:
        assert isinstance(parse_configuration(data, Path("config.toml")), Configuration)
    except UsageError as error:
        assert error.hint  # noqa: PT017 - either is fine


def test_an_argument_goes_before_the_environment_and_that_before_the_file() -> None:
    never = Configuration(relay="never")
    assert relay_use(None, Configuration(), {}) == "auto"
    assert relay_use(None, never, {}) == "never"
    assert relay_use(None, never, {"TPM_MTLS_RELAY": "always"}) == "always"
    assert relay_use("auto", never, {"TPM_MTLS_RELAY": "always"}) == "auto"
    with pytest.raises(UsageError, match=r"\$TPM_MTLS_RELAY is 'on'"):
        relay_use(None, never, {"TPM_MTLS_RELAY": "on"})
    with pytest.raises(UsageError, match="relay is 'on'"):
        relay_use("on", never, {})


def test_where_the_tpm_is_follows_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    path.write_text('tcti = "swtpm:port=1"')
    monkeypatch.setenv("TPM_MTLS_CONFIG", str(path))
    monkeypatch.delenv("TPM_MTLS_TCTI", raising=False)
    assert resolve_tcti(None) == "swtpm:port=1"
    monkeypatch.setenv("TPM_MTLS_TCTI", "swtpm:port=2")
    assert resolve_tcti(None) == "swtpm:port=2"
    assert resolve_tcti("swtpm:port=3") == "swtpm:port=3"
