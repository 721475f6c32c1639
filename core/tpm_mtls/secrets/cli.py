"""``tpm-mtls secret``."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.cli_options import answer, json_option, progress
from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import UsageError
from tpm_mtls.secrets.client import TIMEOUT, Client
from tpm_mtls.secrets.options import socket_option
from tpm_mtls.secrets.protocol import SOCKET_VARIABLE, VALUE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

_FILE = click.Path(dir_okay=False, path_type=Path)
_LONGEST_WAIT = 3600.0
_COMMAND = "tpm_mtls.secrets.command"  # in click's context


@click.group(cls=CommandGroup)
def secret() -> None:
    """Secrets that exist only behind this device's TPM, kept by its agent.

    \b
      printf %s "$KEY" | tpm-mtls secret set stripe-api-key-prod
      tpm-mtls secret exec stripe-api-key-prod -- ./app       # reads it from file descriptor 3
    """  # noqa: D301 - click's marker for a block that is not re-wrapped


def _agent_options(function: F) -> F:
    """``--socket``, ``--timeout``, ``--name-from`` and ``--base64``, which all commands have."""
    options = [
        click.option(
            "--name-from",
            "sources",
            metavar="SOURCE",
            multiple=True,
            help="Read the name from prompt, file:PATH or credential:NAME: who knows it may get the secret, and "
            "arguments can be seen by all.",
        ),
        socket_option(variable=SOCKET_VARIABLE),
        click.option(
            "--timeout",
            type=click.FloatRange(0, _LONGEST_WAIT, min_open=True),
            default=TIMEOUT,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for the agent.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _base64_option(function: F) -> F:
    return click.option(
        "--base64", "as_base64", is_flag=True, help="The value is no text: the agent keeps it in base64."
    )(function)


@secret.command("set", epilog='Example: printf %s "$KEY" | tpm-mtls secret set stripe-api-key-prod')
@click.argument("names", metavar="[NAME]", nargs=-1)
@click.option("--file", "source", type=_FILE, help="Where the value is.  [default: standard input]")
@_base64_option
@_agent_options
@json_option
def set_(
    *,
    names: tuple[str, ...],
    sources: tuple[str, ...],
    source: Path | None,
    as_base64: bool,
    socket: Path,
    timeout: float,
    as_json: bool,
) -> None:
    """Keep a secret, in place of the one of that name, and print its NV index.

    The value is what comes on standard input, byte for byte; echo would add a newline to it. At a terminal it is asked
    for, unseen.
    """
    from tpm_mtls.streams import read_input  # noqa: PLC0415 - the same

    name = _one(names, sources)
    value = read_input(source, limit=VALUE_LIMIT, what="secret")
    client = Client(socket, timeout=timeout)
    index = client.set_bytes(name, value) if as_base64 else client.set(name, _text(value))
    if value.endswith(b"\n") and not as_base64:
        progress("tpm-mtls: note: the newline at the end is part of the secret")
    answer({"index": f"{index:#010x}"}, f"{index:#010x}", as_json=as_json)


@secret.command(epilog="Example: tpm-mtls secret get stripe-api-key-prod --out api.key")
@click.argument("names", metavar="[NAME]", nargs=-1)
@click.option("--out", type=_FILE, help="Make this file (mode 0600); never overwrites.  [default: standard output]")
@_base64_option
@_agent_options
@json_option
def get(
    *,
    names: tuple[str, ...],
    sources: tuple[str, ...],
    out: Path | None,
    as_base64: bool,
    socket: Path,
    timeout: float,
    as_json: bool,
) -> None:
    """Get a secret, byte for byte; nothing is added to it, but on a terminal a newline at the end."""
    from tpm_mtls.files import refuse_existing  # noqa: PLC0415 - `secret --help` stays quick
    from tpm_mtls.streams import write_output  # noqa: PLC0415 - the same

    if out is not None:
        refuse_existing(out)
    client = Client(socket, timeout=timeout)
    name = _one(names, sources)
    value = client.get_bytes(name) if as_base64 else client.get(name).encode()
    if out is not None or not as_json:
        write_output(out, value)
    if out is not None:
        answer({"out": str(out)}, str(out), as_json=as_json)
    elif as_json:
        shown = base64.b64encode(value).decode() if as_base64 else value.decode()
        answer({"base64" if as_base64 else "value": shown}, "", as_json=True)


@secret.command("del", epilog="Example: tpm-mtls secret del stripe-api-key-prod")
@click.argument("names", metavar="[NAME]", nargs=-1)
@_agent_options
@json_option
def del_(*, names: tuple[str, ...], sources: tuple[str, ...], socket: Path, timeout: float, as_json: bool) -> None:
    """Remove a secret."""
    Client(socket, timeout=timeout).delete(_one(names, sources))
    answer({"deleted": True}, "deleted", as_json=as_json)


class _Exec(click.Command):
    """Takes what comes after ``--`` as another program's command, which click itself would mix with the names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_COMMAND] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@secret.command(
    "exec",
    cls=_Exec,
    options_metavar="[OPTIONS]",
    epilog="\b\nExample: tpm-mtls secret exec postgres-password -- sh -c 'exec ./app --password-file /dev/fd/3'",
)
@click.argument("names", metavar="[NAME]… -- COMMAND [ARGUMENT]…", nargs=-1)
@click.option(
    "--environment",
    "variables",
    metavar="VARIABLE",
    multiple=True,
    help="Hand it over as this variable instead, which every process of the same user can read; once for each name.",
)
@click.option(
    "--first-descriptor", type=click.IntRange(3, 900), default=3, show_default=True, help="The first secret's number."
)
@_base64_option
@_agent_options
@click.pass_context
def exec_(  # noqa: PLR0913 - one parameter per option
    context: click.Context,
    *,
    names: tuple[str, ...],
    sources: tuple[str, ...],
    variables: tuple[str, ...],
    first_descriptor: int,
    as_base64: bool,
    socket: Path,
    timeout: float,
) -> int:
    """Run a program that gets secrets as open files: the first as file descriptor 3, the next as 4, and so on.

    The files are in memory, and nobody can change them; the program reads the descriptor, or /dev/fd/3. It takes this
    process's place, with its input, output, signals and exit status.
    """
    from tpm_mtls.programs import cannot_run  # noqa: PLC0415 - `secret --help` stays quick
    from tpm_mtls.secrets import delivery  # noqa: PLC0415 - the same

    command: list[str] = context.meta[_COMMAND]
    if not command:
        raise UsageError("there is no program to run", hint="tpm-mtls secret exec NAME -- COMMAND")
    asked = _names(names, sources)
    if variables and len(variables) != len(asked):
        raise UsageError(
            f"{len(asked)} names and {len(variables)} variables", hint="give --environment once for each name"
        )
    if not variables:
        delivery.check_descriptors(first_descriptor, len(asked))
    client = Client(socket, timeout=timeout)
    values = [client.get_bytes(name) if as_base64 else client.get(name).encode() for name in asked]
    environment = delivery.with_variables(dict(zip(variables, values, strict=False)), os.environ)
    if not variables:
        delivery.give_as_descriptors(values, first_descriptor)
    try:
        delivery.become(command, environment)
    except OSError as error:
        return cannot_run(command[0], error)


def _names(arguments: Sequence[str], sources: Sequence[str]) -> list[str]:
    from tpm_mtls.authorization import read_secret  # noqa: PLC0415 - `secret --help` stays quick

    found = [*arguments, *(_text(read_secret(source, what="secret's name").value) for source in sources)]
    if not found:
        raise UsageError("which secret?", hint="give its NAME, or --name-from SOURCE")
    return found


def _one(arguments: Sequence[str], sources: Sequence[str]) -> str:
    name, *others = _names(arguments, sources)
    if others:
        raise UsageError("that is more than one name", hint="quote a name that has spaces in it")
    return name


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UsageError("it is no text in UTF-8", hint="a value that is no text goes with --base64") from error
