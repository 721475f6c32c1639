"""The core: what several components of tpm-mtls share."""
