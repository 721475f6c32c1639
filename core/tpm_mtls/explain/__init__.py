"""``tpm-mtls explain``: what a response code means, who answered it, what usually leads to it, and what to do."""
