"""Options that the client's commands share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpm_mtls.authorization import read_authorization
from tpm_mtls.cli_options import auth_option, relay_option, state_dir_option, tcti_option
from tpm_mtls.errors import UsageError
from tpm_mtls.identity import Identity, load_identity
from tpm_mtls.key_reference import parse_key_reference

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse

_file = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    state_dir_option,
    click.option("--cert", type=_file, metavar="FILE", help="Certificate chain, instead of the identity folder's."),
    click.option("--key", metavar="KEY", help="Its key: a PEM file or a handle such as handle:0x81000100."),
    click.option("--trust", type=_file, metavar="FILE", help="Trust anchors for the other side."),
    tcti_option,
    relay_option,
    auth_option(),
    click.option(
        "--timeout",
        type=click.FloatRange(0, 86400, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="For everything together.",
    ),
    click.option("--tls12", is_flag=True, help="Allow TLS 1.2, for an old server."),
)


@dataclass(frozen=True)
class Settings:
    """Who asks, and how.

    Attributes:
        identity: key, certificate, trust anchors.
        tcti: where the TPM is, as given.
        authorization: the key's authorization value.
        seconds: for everything together.
        tls12: whether TLS 1.2 is allowed.
        relay: whether the key is used through the relay, as given.
    """

    identity: Identity
    tcti: str | None
    authorization: Secret | None
    seconds: float
    tls12: bool
    relay: RelayUse | None = None

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        """The lowest version of TLS that is allowed."""
        import ssl  # noqa: PLC0415 - `--help` does without

        return ssl.TLSVersion.TLSv1_2 if self.tls12 else ssl.TLSVersion.TLSv1_3


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a connection; passes a `Settings` to the parameter ``settings``."""

    @functools.wraps(function)
    def command(  # noqa: PLR0913 - one parameter per option
        *,
        state_dir: Path,
        cert: Path | None,
        key: str | None,
        trust: Path | None,
        tcti: str | None,
        relay: RelayUse | None,
        auth: str | None,
        timeout: float,
        tls12: bool,
        **others: Any,  # noqa: ANN401 - the command's own
    ) -> Any:  # noqa: ANN401 - what the command returns
        settings = Settings(
            identity=_identity(state_dir, cert, key, trust),
            tcti=tcti,
            relay=relay,
            authorization=read_authorization(auth),
            seconds=timeout,
            tls12=tls12,
        )
        return function(settings=settings, **others)

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


def _identity(state_dir: Path, cert: Path | None, key: str | None, trust: Path | None) -> Identity:
    if cert is None and key is None and trust is None:
        return load_identity(state_dir)
    if cert is None or key is None or trust is None:
        raise UsageError("an identity is a certificate, a key and trust anchors", hint="give --cert, --key and --trust")
    return Identity(key=parse_key_reference(key), certificate=cert, trust=trust)
