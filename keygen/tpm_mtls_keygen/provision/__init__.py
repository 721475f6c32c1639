"""Hardening a TPM, again and again with one result: ``tpm-mtls provision``.

`settings` reads what is wanted, `observe` looks, `plan` (pure) says what differs, `apply` changes it.
"""
