"""``tpm-mtls keygen renew``, ``restore`` and ``status``: of an identity that is there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from tpm_mtls.authorization import read_authorization, read_hierarchy_authorization
from tpm_mtls.cli_options import (
    answer,
    auth_option,
    endorsement_auth_option,
    json_option,
    state_dir_option,
    storage_options,
    tcti_option,
)
from tpm_mtls.identity import CERTIFICATE
from tpm_mtls.service_manager import notify_status
from tpm_mtls_keygen.cli_common import tell, wait_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("renew", epilog="Example: tpm-mtls keygen renew --if-due --wait 600")
@click.option(
    "--rotate-key",
    "--new-key",
    "rotate_key",
    is_flag=True,
    help="Make a new key; it takes the place of the old one once TLS with the CA has worked with it.",
)
@click.option("--if-due", is_flag=True, help="Do nothing before two thirds of the certificate's life are over.")
@auth_option("the authorization value of the key, and of a new one,")
@storage_options
@endorsement_auth_option
@wait_option
@state_dir_option
@tcti_option
@json_option
def renew(  # noqa: PLR0913 - one parameter per option
    *,
    rotate_key: bool,
    if_due: bool,
    auth: str | None,
    owner_auth: str | None,
    srk_auth: str | None,
    endorsement_auth: str | None,
    wait: float,
    state_dir: Path,
    tcti: str | None,
    as_json: bool,
) -> None:
    """Get another certificate for this device, from the CA that issued the present one.

    The device shows its present certificate and, if it enrolled so, the evidence of its TPM again. Interrupted
    anywhere, the next run, or the next first-boot, finishes it.
    """
    from tpm_mtls_keygen.first_boot_settings import World  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.patience import Patience  # noqa: PLC0415 - the same
    from tpm_mtls_keygen.renew import renew as renew_identity  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.renew_settings import Settings  # noqa: PLC0415 - the same

    settings = Settings(
        folder=state_dir,
        rotate_key=rotate_key,
        only_if_due=if_due,
        auth=auth,
        tcti=tcti,
        owner_authorization=read_hierarchy_authorization(owner_auth),
        srk_authorization=read_authorization(srk_auth),
        endorsement_authorization=read_hierarchy_authorization(endorsement_auth),
    )
    outcome = renew_identity(settings, World(patience=Patience(seconds=wait), tell=tell))
    record = outcome.record
    verb = "renewed" if outcome.changed else "nothing to renew yet"
    notify_status(f"{verb}: {record.device}")
    data = {
        "changed": outcome.changed,
        "rotated": outcome.rotated,
        "device": record.device,
        "key": record.key,
        "state_dir": str(state_dir),
    }
    answer(data, f"{verb}: {record.device}", as_json=as_json)


@click.command("restore", epilog="Example: tpm-mtls keygen restore")
@state_dir_option
@tcti_option
@json_option
def restore(*, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Bring a lost certificate file back from the copy in the TPM; nothing else, and nothing if it is there.

    The copy's certificate must be for this device's key, valid, and lead to the trust anchor in the folder. Where more
    is lost than the certificate, first-boot brings the identity back.
    """
    from tpm_mtls_keygen.first_boot_settings import World  # noqa: PLC0415 - imports tpm2-pytss
    from tpm_mtls_keygen.restore import restore as restore_certificate  # noqa: PLC0415 - the same

    outcome = restore_certificate(state_dir, tcti, World(tell=tell))
    device = outcome.record.device
    text = f"certificate restored from the TPM: {device}" if outcome.restored else f"nothing to restore: {device}"
    notify_status(text)
    data = {
        "changed": outcome.changed,
        "restored": outcome.restored,
        "device": device,
        "certificate": str(state_dir / CERTIFICATE),
    }
    answer(data, text, as_json=as_json)


@click.command("status", epilog="Example: tpm-mtls keygen status --json")
@click.option("--verify", is_flag=True, help="Also ask the TPM whether the key is there and is the same.")
@state_dir_option
@tcti_option
@json_option
def status(*, verify: bool, state_dir: Path, tcti: str | None, as_json: bool) -> None:
    """Say how far the first boot came, and what the device's identity is."""
    from tpm_mtls_keygen.first_boot_status import describe, read_status  # noqa: PLC0415 - imports cryptography

    found = read_status(state_dir, now=datetime.now(UTC), tcti=tcti, verify=verify)
    answer(found.as_dict(), describe(found), as_json=as_json)
