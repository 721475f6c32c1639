"""What the agent does by the clock: health checks, attestation, renewal; and what it does when one of them fails.

When something is to be done is decided in `schedule` and `renewal`, which are pure; `runner` does it. Whatever speaks
to another machine does so in a child process (`backend`, `commands`), outside the thread that has the TPM: a program
that asks for a secret never waits for the network.
"""
