"""The CA: profiles, store, revocation, and the EST server."""
