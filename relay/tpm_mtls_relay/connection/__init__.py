"""The connection to the TPM: transports, and patience with a busy one."""
