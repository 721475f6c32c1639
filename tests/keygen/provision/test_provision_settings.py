"""What a hardening file may say; and what follows from it, without a TPM."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from support.hardening import ALL
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError, StateError, StorageError, UsageError
from tpm_mtls.structures import EkTemplate
from tpm_mtls.tpm.hierarchies import Hierarchy, HierarchyState, LockoutParameters
from tpm_mtls_keygen.provision.kept import Kept
from tpm_mtls_keygen.provision.plan import Authorization, Observed, Platform, Standing, make_plan
from tpm_mtls_keygen.provision.settings import CERTIFIED, Settings, load_settings, parse_settings

FOLDER = Path("/etc/tpm-mtls")
MAKERS = LockoutParameters(3, 1000, 1000)
MANAGED = (Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT)


def parsed(text: str) -> Settings:
    return parse_settings(text.encode(), "hardening.toml", FOLDER)


def observed(
    standing: Standing = Standing.KEPT,
    *,
    certified: tuple[EkTemplate, ...] = (),
    persisted: frozenset[EkTemplate] = frozenset(),
    platform: Platform = Platform.DISABLED,
    lockout: LockoutParameters = MAKERS,
    srk: bytes | None = b"name",
) -> Observed:
    return Observed(
        state=HierarchyState(frozenset(), lockout, locked_out=False, clear_disabled=False, platform_enabled=True),
        srk=srk,
        endorsement_keys=persisted,
        certified=certified,
        authorizations={each: Authorization(standing) for each in MANAGED},
        platform=platform,
    )


def changed(text: str, found: Observed) -> list[str]:
    return [item.name for item in make_plan(parsed(text), found) if item.action is not None]


def test_a_file_says_everything() -> None:
    settings = parsed(ALL)

    assert settings == Settings(
        kept={
            Hierarchy.OWNER: Kept(FOLDER / "state/owner.sealed", sealed=True),
            Hierarchy.ENDORSEMENT: Kept(FOLDER / "state/endorsement.sealed", sealed=True),
            Hierarchy.LOCKOUT: Kept(FOLDER / "state/lockout", sealed=False),
        },
        endorsement_keys=(EkTemplate.ECC_P256,),
        max_tries=10,
        recovery_time=7200,
        lockout_recovery=86400,
        disable_platform=True,
    )
    assert str(settings.kept[Hierarchy.OWNER]) == "sealed:/etc/tpm-mtls/state/owner.sealed"
    assert str(settings.kept[Hierarchy.LOCKOUT]) == "file:/etc/tpm-mtls/state/lockout"


def test_an_empty_file_wants_only_the_storage_root_key() -> None:
    assert parsed("") == Settings()
    assert changed("", observed(srk=None)) == ["storage root key"]
    assert changed("", observed(Standing.UNKNOWN, platform=Platform.OPEN)) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[owner", "no hardening file"),
        ("\xff", "no hardening file"),
        ("[ower]", "unknown field `ower`"),
        ("[owner]\nauthorisation = 'file:x'", "unknown field `authorisation`"),
        ("[owner]\nauthorization = 5", "expected `str"),
        ("[owner]\nauthorization = 'hunter2'", "neither sealed nor in a file"),
        ("[owner]\nauthorization = 'file:'", "neither sealed nor in a file"),
        ('[owner]\nauthorization = "file:a\\u0000"', "neither sealed nor in a file"),
        ("[endorsement]\nkey = 'certified'", "unknown field `key`"),
        ("[lockout]\nmax_trys = 5", "unknown field `max_trys`"),
        ("[platform]\ndisabled = true", "unknown field `disabled`"),
        ("[owner]\nauthorization='file:a'\n[lockout]\nauthorization='sealed:a'", "two authorization values in one"),
        ("[owner]\nauthorization='file:a'\n[lockout]\nauthorization='file:a.new'", "two authorization values in one"),
        ("[endorsement]\nkeys = ['L-9']", "no endorsement key 'L-9'"),
        ("[endorsement]\nkeys = 'all'", "no hardening file"),
        ("[lockout]\nmax_tries = 0", "max_tries is 0"),
        ("[lockout]\nmax_tries = 10001", "max_tries is 10001"),
        ("[lockout]\nrecovery_time = 7200", "expected `str"),
        ("[lockout]\nrecovery_time = '2 hours'", "not a span of time"),
        ("[lockout]\nlockout_recovery = '0s'", "not a span of time"),
        ("[platform]\ndisable = 'yes'", "expected `bool`"),
    ],
)
def test_anything_else_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as refused:
        parse_settings(text.encode("latin-1"), "hardening.toml", FOLDER)
    assert "hunter2" not in f"{refused.value}{refused.value.hint}"


def test_the_most_tries_and_a_key_named_twice_are_taken() -> None:
    assert parsed("[lockout]\nmax_tries = 10000").max_tries == 10_000
    assert parsed("[endorsement]\nkeys = ['L-2', 'L-1', 'L-2']").endorsement_keys == (
        EkTemplate.ECC_P256,
        EkTemplate.RSA_2048,
    )


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "hardening.toml").write_text("[owner]\nauthorization = 'file:owner'\n")
    assert load_settings(tmp_path / "hardening.toml").kept[Hierarchy.OWNER].path == tmp_path / "owner"
    with pytest.raises(StorageError, match="no such file"):
        load_settings(tmp_path / "other.toml")


def test_it_may_come_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[owner]\nauthorization = 'file:owner'\n")))
    assert load_settings(Path("-")).kept[Hierarchy.OWNER].path == Path.cwd() / "owner"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[ower]")))
    with pytest.raises(UsageError, match="standard input is no hardening file"):
        load_settings(Path("-"))


def test_the_storage_root_key_comes_first_and_the_platform_last() -> None:
    found = observed(Standing.NONE, srk=None, platform=Platform.OPEN)
    assert changed(ALL, found) == [
        "storage root key",
        "owner authorization",
        "endorsement authorization",
        "lockout authorization",
        "endorsement key L-2 (ecc-p256)",
        "lockout parameters",
        "platform hierarchy",
    ]


@pytest.mark.parametrize(
    ("standing", "change"),
    [
        (Standing.NONE, "set it, and keep it in file:/o"),
        (Standing.GIVEN, "change it, and keep it in file:/o"),
        (Standing.BEGUN, "finish what was begun: keep it in file:/o"),
        (Standing.KEPT, ""),
    ],
)
def test_what_is_done_depends_on_who_knows_the_value(standing: Standing, change: str) -> None:
    plan = make_plan(parsed("[owner]\nauthorization = 'file:/o'"), observed(standing))
    assert plan[-1].change == change


@pytest.mark.parametrize("hierarchy", ["owner", "endorsement", "lockout"])
def test_a_value_that_nobody_knows_is_asked_for(hierarchy: str) -> None:
    with pytest.raises(AuthorizationError, match=f"the {hierarchy} hierarchy has an authorization") as refused:
        changed(f"[{hierarchy}]\nauthorization = 'file:/o'", observed(Standing.UNKNOWN))
    assert f"--{hierarchy}-auth" in refused.value.hint
    assert refused.value.rc == 0x9A2  # TPM_RC_BAD_AUTH, as a TPM would say it


@pytest.mark.parametrize(
    ("text", "found", "hierarchy"),
    [
        ("", observed(Standing.UNKNOWN, srk=None), "owner"),
        ("[endorsement]\nkeys = ['L-2']", observed(Standing.UNKNOWN), "owner"),
        ("[lockout]\nmax_tries = 5", observed(Standing.UNKNOWN), "lockout"),
    ],
)
def test_a_value_that_a_change_needs_is_asked_for_before_it_is_begun(
    text: str, found: Observed, hierarchy: str
) -> None:
    with pytest.raises(AuthorizationError, match=f"the {hierarchy} hierarchy"):
        changed(text, found)


def test_an_endorsement_key_takes_the_values_of_both_hierarchies() -> None:
    found = observed()
    unknown = {**found.authorizations, Hierarchy.ENDORSEMENT: Authorization(Standing.UNKNOWN)}
    with pytest.raises(AuthorizationError, match="the endorsement hierarchy"):
        changed("[endorsement]\nkeys = ['L-2']", replace(found, authorizations=unknown))


def test_values_that_no_change_needs_may_be_unknown() -> None:
    text = "[endorsement]\nkeys = ['L-2']\n[lockout]\nmax_tries = 3"
    assert changed(text, observed(Standing.UNKNOWN, persisted=frozenset({EkTemplate.ECC_P256}))) == []


def test_lockout_parameters_that_are_not_named_stay() -> None:
    plan = make_plan(parsed("[lockout]\nmax_tries = 5"), observed())
    assert plan[-1].change.startswith("set 5 tries, one forgotten after 1000 s")


def test_certified_endorsement_keys_are_kept() -> None:
    text = "[endorsement]\nkeys = 'certified'"
    assert parsed(text).endorsement_keys == CERTIFIED
    assert changed(text, observed()) == []
    rsa, ecc = EkTemplate.RSA_2048, EkTemplate.ECC_P256
    assert changed(text, observed(certified=(rsa, ecc), persisted=frozenset({rsa}))) == [
        "endorsement key L-2 (ecc-p256)"
    ]


def test_a_platform_that_the_firmware_locked_is_left_alone() -> None:
    assert changed("[platform]\ndisable = true", observed(platform=Platform.LOCKED)) == []


def test_a_clear_comes_before_everything_and_undoes_it() -> None:
    plan = make_plan(parsed(ALL), observed(persisted=frozenset({EkTemplate.ECC_P256})), clear=True)
    assert [item.name for item in plan if item.action is not None] == [
        "the whole TPM",
        "storage root key",
        "owner authorization",
        "endorsement authorization",
        "lockout authorization",
        "endorsement key L-2 (ecc-p256)",
        "lockout parameters",
    ]


def test_a_tpm_that_cannot_be_cleared_is_not_asked_to() -> None:
    """A wrong lockout authorization, such as an empty one, would block the right one for a day."""
    with pytest.raises(AuthorizationError, match="lockout hierarchy has an authorization value, and none is kept"):
        make_plan(parsed(""), observed(Standing.UNKNOWN), clear=True)
    found = observed()
    forbidden = replace(found, state=replace(found.state, clear_disabled=True))
    with pytest.raises(StateError, match="forbade to clear") as refused:
        make_plan(parsed(""), forbidden, clear=True)
    assert "tpm2_clearcontrol -C p c" in refused.value.hint


def test_values_are_in_no_repr() -> None:
    assert "hunter2" not in repr(Authorization(Standing.GIVEN, Secret(b"hunter2"), Secret(b"hunter2")))
