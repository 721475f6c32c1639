"""Attacks on identities: a genuine TPM, or a device's own old certificate, and a name that is not its own."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from support import evidence
from support.authority import make_csr
from tpm_mtls import est
from tpm_mtls_pki.groups import Naming

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.evil_device import EvilDevice, Stage
    from support.reference_device import Answer, Exchange


def name_of_another_tpm_by_token(stage: Stage) -> Answer:
    """A genuine TPM, and a stolen token for the name of a device that has another one."""
    stage.trust_other()
    with stage.device() as victim, stage.device(other=True) as thief:
        stage.bind("sensor-1", victim)
        return stage.submit(thief, **stage.token("sensor-1"))


def name_of_another_tpm_by_asking(stage: Stage) -> Answer:
    """A genuine TPM whose request asks for the name of a device that has another one."""
    stage.trust_other()
    stage.rules(naming=Naming.ASKED)
    with stage.device() as victim, stage.device(other=True) as thief:
        stage.bind("sensor-1", victim)
        with stage.exchange(thief) as exchange:
            return exchange.enroll(name="sensor-1")


def second_name_for_a_tpm(stage: Stage) -> Answer:
    """A device that has a name takes another one with a stolen token."""
    with stage.device() as device:
        stage.bind("sensor-1", device)
        return stage.submit(device, **stage.token("sensor-2"))


def downgrade_to_a_software_key(stage: Stage) -> Answer:
    """A good token for a device that was seen with a TPM, and a software key."""
    with stage.device() as device:
        stage.bind("sensor-1", device)
        with stage.exchange(device) as exchange:
            return exchange.post(make_csr(evidence.new_key()), **stage.token("sensor-1"))


def renewal_with_a_software_key(stage: Stage) -> Answer:
    """Without evidence, though the device was seen with a TPM."""
    return _renewal(stage, lambda exchange, _: exchange.post(make_csr(evidence.new_key()), renew=True))


def renewal_by_another_tpm(stage: Stage) -> Answer:
    """With sound evidence of another genuine TPM: the key moved."""
    return _renewal(stage, lambda exchange, _: exchange.enroll(renew=True), other=True)


def renewal_with_stale_evidence(stage: Stage) -> Answer:
    """With evidence that answers no nonce."""
    return _renewal(stage, lambda exchange, device: exchange.post(device.csr(device.certify(bytes(32))), renew=True))


def _renewal(stage: Stage, renew: Callable[[Exchange, EvilDevice], Answer], *, other: bool = False) -> Answer:
    """Over TLS with a certificate for a software key that the attacker has; the device has had a TPM since."""
    key = evidence.new_key()
    status, _, body = stage.host.enroll(make_csr(key), stage.token("sensor-1"))
    assert status == HTTPStatus.OK
    (certificate,) = est.decode_certificates(body)
    stage.honest += 1
    stage.trust_other()
    with stage.device() as victim:
        stage.bind("sensor-1", victim)
    context = stage.host.context(certificate, key)
    with stage.device(other=other) as device, stage.exchange(device, context) as exchange:
        return renew(exchange, device)
