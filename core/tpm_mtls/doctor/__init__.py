"""``tpm-mtls doctor``: what is wrong with this device's TPM, OpenSSL, identity or network, and what to type.

What is seen is written down first (`Machine`, `TpmReport`, `OpensslReport`, `IdentityReport`), then judged by functions
that look at nothing else. The TPM is asked in one child process and OpenSSL tried in another: a process speaks to the
provider or to pytss, and a TPM that never answers holds up neither.
"""
