"""The backend: who is calling, and what may they do."""
