"""``tpm-mtls tpm``: what a TPM is, what it can do, and whether it does it. Nothing here stays in the TPM."""
