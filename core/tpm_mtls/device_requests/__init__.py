"""Requests over HTTPS: one, and its whole answer, in bounded time; as the device itself, where TLS takes its key.

A process speaks either to OpenSSL's provider, which TLS with a TPM key needs, or to tpm2-pytss, never both. So whoever
uses the TPM for something else lets a child send the request (`tpm_mtls.device_requests.transport`), and only that
child, `tpm_mtls.device_requests.child`, uses the provider.
"""

from __future__ import annotations

from tpm_mtls.device_requests.messages import ANSWER_LIMIT, BODY_LIMIT, Answer, Request, Server, Timeouts, Transport
from tpm_mtls.device_requests.transport import DeviceTransport

__all__ = [
    "ANSWER_LIMIT",
    "BODY_LIMIT",
    "Answer",
    "DeviceTransport",
    "Request",
    "Server",
    "Timeouts",
    "Transport",
]
