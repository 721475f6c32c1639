"""What devices may ask: attestation, health, telemetry; and which of it their state lets them have."""
