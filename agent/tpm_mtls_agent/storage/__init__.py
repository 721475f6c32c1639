"""Where the secrets are: NV indices of the TPM and files that only the TPM opens; whole after every kill."""
