"""Secrets of programs, kept by the device agent: its wire protocol and its client."""

from tpm_mtls.secrets.client import Client

__all__ = ["Client"]
