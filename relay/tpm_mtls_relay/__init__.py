"""The TPM relay: stands between a program that speaks TPM commands and the TPM.

libtss2's ``cmd:`` transport starts it and writes raw TPM 2.0 commands to its stdin, one after the other, and reads the
responses from its stdout. It is started for each program that opens the TPM, so it imports nothing but the standard
library, and of that only what is small (no ``socket``, ``dataclasses``, ``typing``, ``argparse``: they would double its
start-up time).

Every layer is a function from a command to its response, and is given the layer below::

    program ─ Shortcuts ─ PolicyAuthorization ─ Tracking ─ Retrying ─ Tap ─ LatencyModel ─ transport ─ TPM

- `shortcuts`: answers in software what needs no TPM, and uses a persistent key in place of its loaded copy.
- `policies`: satisfies the policy of a key that has one.
- `loaded`: knows what is loaded, and leaves nothing behind.
- `connection`: the way to the TPM; a busy TPM, or a connection that died.
- `observers`: trace, capture and counters of what reaches the TPM; a simulated TPM made as slow as a chip.
- `messages`: commands and responses as bytes, for all of them.

What no layer knows goes through byte for byte.
"""
