"""``seal`` and ``unseal``: data that this TPM gives back, in files or at an NV index."""
