"""What stands right before the TPM: trace, capture, counters, and a chip's slowness."""
