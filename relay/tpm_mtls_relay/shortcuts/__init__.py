"""What needs no TPM: digests, answers that cannot change, and copies of keys that are persistent."""
