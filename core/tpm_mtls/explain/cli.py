"""``tpm-mtls explain``."""

from __future__ import annotations

import click

from tpm_mtls.cli_options import answer, json_option


@click.command(
    epilog="Example: tpm-mtls explain 0x9a2",
    context_settings={"ignore_unknown_options": True},  # lines of logs may begin with a dash
)
@click.argument("what", nargs=-1, required=True, metavar="CODE|NAME|LINE")
@json_option
def explain(*, what: tuple[str, ...], as_json: bool) -> None:
    """Say what a response code of a TPM or of its software means, who answered it, and what to do.

    A code is 0x99d or its decimal number, a name TPM_RC_POLICY_FAIL or POLICY_FAIL. A LINE is one of the kernel's log,
    of tpm2-tools, systemd, OpenSSL or tpm-mtls, with codes in it or libtss2's words for them; quote it. No TPM is
    asked. All codes are in docs/reference/response-codes.md.
    """
    from tpm_mtls.explain.presentation import facts, words  # noqa: PLC0415 - `--help` stays quick
    from tpm_mtls.explain.reading import other_reading, read_codes  # noqa: PLC0415 - the same

    text = " ".join(what)
    codes = read_codes(text)
    other = other_reading(text)
    paragraphs = [words(code) for code in codes]
    if other is not None:
        paragraphs.append(f"{text} was read as a decimal number; as a hexadecimal one: tpm-mtls explain {other:#x}")
    answer({"codes": [facts(code) for code in codes]}, "\n\n".join(paragraphs), as_json=as_json)
