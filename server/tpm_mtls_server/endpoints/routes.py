"""Which handler answers which path, and for whom: devices or operators, never both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from aiohttp import web

    from tpm_mtls_server.peer import DevicePeer, OperatorPeer

    DeviceHandler: TypeAlias = Callable[[web.BaseRequest, DevicePeer], Awaitable[web.Response]]
    OperatorHandler: TypeAlias = Callable[[web.BaseRequest, OperatorPeer, Mapping[str, str]], Awaitable[web.Response]]


@dataclass(frozen=True)
class DeviceRoute:
    """A path for devices.

    Attributes:
        method: such as ``GET``.
        path: all of it.
        handler: what answers; it gets the request and the device.
    """

    method: str
    path: str
    handler: DeviceHandler


@dataclass(frozen=True)
class OperatorRoute:
    """A path for operators.

    Attributes:
        method: such as ``GET``.
        path: all of it; a segment ``{word}`` stands for any one, which the handler gets under that word.
        handler: what answers; it gets the request, the operator, and what the path said.
    """

    method: str
    path: str
    handler: OperatorHandler


Route: TypeAlias = DeviceRoute | OperatorRoute


@dataclass(frozen=True)
class Found:
    """What there is at a path.

    Attributes:
        path: the routes' path, with its words.
        methods: the routes by method; all are for devices, or all for operators.
        parameters: what the path said, by word.
    """

    path: str
    methods: Mapping[str, Route]
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def for_devices(self) -> bool:
        """Whether it is for devices."""
        return all(isinstance(route, DeviceRoute) for route in self.methods.values())


class Routes:
    """All routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        self._fixed = {path: Found(path, methods) for path, methods in by_path.items() if "{" not in path}
        self._patterns = [(path.split("/"), methods) for path, methods in by_path.items() if "{" in path]

    def find(self, path: str) -> Found | None:
        """What there is at ``path``, percent-decoded; none if nothing."""
        found = self._fixed.get(path)
        if found is not None:
            return found
        segments = path.split("/")
        for pattern, methods in self._patterns:
            parameters = _match(pattern, segments)
            if parameters is not None:
                return Found("/".join(pattern), methods, parameters)
        return None

    def device_paths(self) -> frozenset[str]:
        """The paths for devices."""
        return frozenset(path for path, found in self._fixed.items() if found.for_devices)


def _match(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    found: dict[str, str] = {}
    for wanted, segment in zip(pattern, segments, strict=True):
        if wanted.startswith("{") and segment:
            found[wanted[1:-1]] = segment
        elif wanted != segment:
            return None
    return found
