"""Attestation: what a device proves to the backend, and what it says; used by both sides."""
