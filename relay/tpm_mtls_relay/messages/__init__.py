"""TPM commands and responses as bytes."""
