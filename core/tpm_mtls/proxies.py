"""HTTP proxies, of which the project uses none: between device and server nobody else ends TLS, or knows who speaks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PROXY_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def unused_proxy(host: str, environment: Mapping[str, str] = os.environ) -> str:
    """What to add to a hint where ``host`` cannot be reached: that a proxy is set for it, which is not used.

    Args:
        host: name or address.
        environment: the variables that curl and urllib read proxies from (curl(1), ENVIRONMENT). Values are not
            repeated: they may have a password.

    Returns:
        Text that begins with ``; ``; empty where no proxy is set for that host.
    """
    named = next((name for name in PROXY_VARIABLES if environment.get(name)), None)
    if named is None:
        return ""
    from urllib.request import proxy_bypass  # noqa: PLC0415 - only where something failed

    excepted = {"no": environment.get("no_proxy") or environment.get("NO_PROXY") or ""}
    if proxy_bypass(host, excepted):
        return ""
    return f"; {named} is set, but tpm-mtls uses no proxy: this machine must reach {host} itself"
