"""What a first boot is told, what else it depends on, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls.authorization import HierarchyAuthorization, Secret
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.policy.new_policy import PolicyWish


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        folder: the identity folder.
        ca_url: the EST server.
        token_file: the bootstrap token; see `read_token`. Without one the TPM's evidence alone enrolls.
        trust: PEM file with the root certificates that the CA's chains must lead to.
        device: the device's name, where the token file does not say it. With evidence alone the name that is asked
            for; the CA says what the device is called.
        wish: which key.
        policy: what must hold for the key to be used, if it is to have a policy. Only a run that makes the key looks
            at it; the policies that an operator signed must be in the folder before.
        auth: where the key's authorization value is, if it is to have one; see `tpm_mtls.authorization`. Only a run
            that makes or uses the key reads it.
        tcti: where the TPM is; see `tpm_mtls.tcti.resolve_tcti`.
        owner_authorization: authorization value of the owner hierarchy, if it has one.
        srk_authorization: authorization value of the storage root key, if it has one.
        endorsement_authorization: authorization value of the endorsement hierarchy, if it has one.
    """

    folder: Path
    ca_url: str
    token_file: Path | None
    trust: Path
    device: str | None = None
    wish: Wish = field(default_factory=Wish)
    policy: PolicyWish | None = None
    auth: str | None = None
    tcti: str | None = None
    owner_authorization: HierarchyAuthorization | None = None
    srk_authorization: Secret | None = None
    endorsement_authorization: HierarchyAuthorization | None = None


@dataclass(frozen=True)
class World:
    """Everything else that it depends on.

    Attributes:
        now: the clock by which certificates are judged.
        patience: how long to wait for the CA.
        tell: takes a line of progress.
    """

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    patience: Patience = field(default_factory=Patience)
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """How it ended well.

    Attributes:
        record: the device's identity.
        changed: false when everything was there already.
        restored: whether the identity, or its certificate, came back from the TPM's NV memory.
        rotated: whether the device has a new key.
    """

    record: IdentityRecord
    changed: bool
    restored: bool = False
    rotated: bool = False
