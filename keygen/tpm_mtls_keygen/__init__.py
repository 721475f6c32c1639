"""Runs on the device: creates and imports keys, requests, first boot."""
