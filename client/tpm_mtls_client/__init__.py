"""The mutual-TLS client: a connection in one call."""
