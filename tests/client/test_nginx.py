"""An outside server agrees: nginx verifies our certificate and says whom it saw."""

from __future__ import annotations

import gc
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from support.nginx import running_nginx
from support.tpm_keys import make_key
from tpm_mtls.errors import HandshakeError, RequestRefusedError
from tpm_mtls_client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.certificates import TestCa
    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity


@pytest.fixture
def backend(ca: TestCa) -> Identity:
    return ca.software_identity("localhost")


@pytest.fixture
def _keys_leave_the_tpm(tpm: SimulatedTpm) -> Iterator[None]:  # noqa: ARG001 - looks for leaks after this
    yield
    gc.collect()


def _serial(identity: Identity) -> int:
    return x509.load_pem_x509_certificates(identity.certificate.read_bytes())[0].serial_number


@pytest.mark.usefixtures("_keys_leave_the_tpm")
@pytest.mark.parametrize("version", ["TLSv1.3", "TLSv1.2"])
@pytest.mark.parametrize("algorithm", ["ecc-p256", "ecc-p384", "rsa-2048"])
@pytest.mark.parametrize("handle", [None, 0x81000100], ids=["tss2", "persistent"])
def test_nginx_verifies_a_tpm_key(
    ca: TestCa, backend: Identity, tpm: SimulatedTpm, tmp_path: Path, algorithm: str, handle: int | None, version: str
) -> None:
    key = make_key(tpm, tmp_path, algorithm, handle=handle)
    device = ca.identity(key.reference, key.public_key, "device-1")
    minimum = ssl.TLSVersion.TLSv1_2 if version == "TLSv1.2" else ssl.TLSVersion.TLSv1_3
    with (
        running_nginx(tmp_path / "nginx", backend, protocols=version) as url,
        connect(device, tcti=tpm.tcti, minimum_version=minimum, base_url=url) as client,
    ):
        first, second = (client.get("/").body.decode().split("|") for _ in range(2))
    verdict, subject, serial, spoken, *_ = first
    assert (verdict, subject, int(serial, 16), spoken) == ("SUCCESS", "CN=device-1", _serial(device), version)
    assert first == second, "the connection was kept"


def test_nginx_refuses_a_certificate_of_another_ca_in_http(
    backend: Identity, device: Identity, other_ca: TestCa, tmp_path: Path
) -> None:
    with running_nginx(tmp_path / "nginx", replace(backend, trust=other_ca.trust)) as url, connect(device) as client:
        response = client.get(url)
    assert response.status == 400
    with pytest.raises(RequestRefusedError, match="The SSL certificate error") as caught:
        response.raise_for_status()
    assert "nginx also answers so when it refuses a client certificate" in caught.value.hint


def test_nginx_with_an_old_protocol_only(backend: Identity, device: Identity, tmp_path: Path) -> None:
    with (
        running_nginx(tmp_path / "nginx", backend, protocols="TLSv1.2") as url,
        connect(device) as client,
        pytest.raises(HandshakeError, match="does not speak the TLS versions that are allowed here"),
    ):
        client.get(url)
