"""The TCG event log: what the firmware measured, and the PCR values that follow from it."""
