"""What is loaded in the TPM through this relay: known, flushed at the end, and remembered for the case of a kill."""
