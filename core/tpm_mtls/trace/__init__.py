"""What programs said to the TPM: reading captures, and ``tpm-mtls trace``, which shows it while it happens."""

from tpm_mtls.trace.capture import CAPTURE_LIMIT, TracedCommand, read_trace

__all__ = ["CAPTURE_LIMIT", "TracedCommand", "read_trace"]
