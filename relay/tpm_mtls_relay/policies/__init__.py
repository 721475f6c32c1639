"""Keys with a policy: their files, and the sessions that satisfy them."""
