"""Connections to a server that looks at lists of revoked certificates."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from support.handshakes import Seen, attempt, handshake
from tpm_mtls.tls import IdentityContext, client_context

if TYPE_CHECKING:
    from tpm_mtls.identity import Identity

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = pytest.mark.parametrize("version", [V1_3, V1_2], ids=lambda version: version.name)
NO_LIST = "unable to get certificate CRL"


def make_client(identity: Identity, version: ssl.TLSVersion = V1_3) -> IdentityContext:
    client = client_context(identity, minimum_version=version)
    client.maximum_version = version
    return client


def connect(client: IdentityContext, server: IdentityContext) -> Seen:
    """A connection that resumes where it can."""
    return handshake(client, server, resume=True)


def assert_refused(client: ssl.SSLContext, server: ssl.SSLContext, why: str, *, resume: bool = True) -> None:
    seen, told, error = attempt(client, server, resume=resume)
    assert seen is None
    assert isinstance(told, OSError)
    assert isinstance(error, ssl.SSLCertVerificationError), error
    assert why in error.verify_message
