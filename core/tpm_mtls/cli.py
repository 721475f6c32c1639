"""The command ``tpm-mtls``: finds the components' sub-commands, and prints errors in one shape."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import click

from tpm_mtls.command_group import CommandGroup
from tpm_mtls.errors import StorageError, TpmMtlsError
from tpm_mtls.hint_options import named_places, with_places

if TYPE_CHECKING:
    from collections.abc import Sequence

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GROUP = "tpm_mtls.commands"

_EPILOG = """\b
Exit status:
   0  success
   1  an error that nobody foresaw (please report it)
   2  an option or argument is wrong
   3  no usable TPM answers
   4  the TPM refused (lockout, no room, wrong authorization, key of another TPM)
   5  a key, certificate or request is unusable
   6  the other side is unreachable, untrusted or refused the handshake
   7  the server answered with an error
   8  a file or folder cannot be read or written
   9  OpenSSL or its tpm2 provider is missing something
  10  what is there already contradicts the request
 130  interrupted
"""


class LazyCommands(CommandGroup):
    """A group whose commands are imported only when named: ``client get`` never imports what ``pki`` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all installed components' commands."""
        return sorted(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command called ``cmd_name``, imported now."""
        entry_point = _commands().get(cmd_name)
        if entry_point is None:
            return None
        command = entry_point.load()
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry_point.value} is no click command")
        return command


def _commands() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=_GROUP)}


@click.group(cls=LazyCommands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tpm-mtls")
@click.option("--debug", is_flag=True, help="Log what happens, and show tracebacks.")
def main(*, debug: bool) -> None:
    """TLS identities that are born in the TPM.

    \b
    Try it without a TPM:
      tpm-mtls simulator start --dir /tmp/tpm
      tpm-mtls keygen create --out device.key.pem \\
        --tcti "$(tpm-mtls simulator status --dir /tmp/tpm)"

    \b
    Something does not work:
      tpm-mtls doctor
    """  # noqa: D301 - click's marker for a block that is not re-wrapped
    if debug:
        logging.basicConfig(stream=sys.stderr, format="tpm-mtls: debug: %(name)s: %(message)s")
        logging.getLogger("tpm_mtls").setLevel(logging.DEBUG)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; nothing escapes but `SystemExit` from an interrupt handler."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = main.main(args=given, prog_name="tpm-mtls", standalone_mode=False)
    except TpmMtlsError as error:
        _complain(str(error), with_places(error.hint, named_places(given), main))
        _trace("--debug" in given)
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _complain(error.format_message().removesuffix(".").strip(), f"see {error.ctx.command_path} --help")
        else:
            _complain(error.format_message().removesuffix("."), "see tpm-mtls --help")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("tpm-mtls: interrupted", err=True)
        return 130
    except Exception as error:  # noqa: BLE001 - the last handler: a user never sees a traceback unasked
        return _unforeseen(error, given)
    return status if isinstance(status, int) else 0


def _unforeseen(error: Exception, given: Sequence[str]) -> int:
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:  # what was opened has a name
        _complain(f"cannot write the answer: {os.strerror(error.errno).lower()}", "make room where it is written to")
        return StorageError.exit_code
    _complain(
        f"internal: {type(error).__name__}: {error}",
        "this is a bug: run it again with tpm-mtls --debug and report it",
    )
    _trace("--debug" in given)
    return 1


def _complain(message: str, hint: str) -> None:
    text = message[:1].lower() + message[1:] if message[1:2].islower() else message
    click.echo(f"tpm-mtls: error: {text}", err=True)
    click.echo(f"tpm-mtls: hint: {hint}", err=True)


def _trace(wanted: bool) -> None:  # noqa: FBT001 - private, one argument
    if wanted:
        traceback.print_exc()
