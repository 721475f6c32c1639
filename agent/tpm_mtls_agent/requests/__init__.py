"""The secrets socket: who asks, may they, whose turn is it, and a line in the audit log."""
