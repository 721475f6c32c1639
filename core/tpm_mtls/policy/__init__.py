"""Policies of keys: what must hold for the TPM to use them."""
