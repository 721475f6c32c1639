"""Attestation of what a device booted: the messages, and the checks of a quote that both sides make.

Nothing is imported here: `tpm_mtls.attestation.messages` is for programs that never read TPM data, too.
"""
