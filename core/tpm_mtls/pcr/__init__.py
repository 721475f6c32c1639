"""Platform configuration registers: what they are now, since when they differ, what they will be."""
