"""The CA: profiles, policy, store, revocation, and the EST server. It needs no TPM."""
