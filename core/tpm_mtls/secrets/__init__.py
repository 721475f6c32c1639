"""Secrets of programs, kept by the device agent: its wire protocol and its client."""
