"""What operators ask of the backend over mutual TLS, and do to devices.

    GET  /operator/devices                   ?group=G&state=S&after=NAME&limit=N
    GET  /operator/devices/NAME
    POST /operator/devices/NAME/approve      {"boot": …}      the PCR digest that is meant; may be left out
    POST /operator/devices/NAME/quarantine   {"reason": …}
    POST /operator/devices/NAME/release      {}
    GET  /metrics                            Prometheus' text format

For certificates of the operators' profile only. Every body is JSON and says so: a web page that an operator looks at
with the certificate in the browser cannot send that unasked (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from aiohttp import web

from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls.errors import StateError
from tpm_mtls_server.endpoints.body import read_body
from tpm_mtls_server.endpoints.routes import OperatorRoute
from tpm_mtls_server.http import FIXED_HEADERS, Refusal, answer
from tpm_mtls_server.metrics import CONTENT_TYPE, exposition
from tpm_mtls_server.operators.device_facts import device_facts, dossier_facts, instant, read_dossier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from tpm_mtls_server.metrics import Metrics
    from tpm_mtls_server.peer import OperatorPeer
    from tpm_mtls_server.registry import Registry

BODY_LIMIT: Final = 4096
"""Bytes of an operator's body: a reason has at most 500 characters."""

PAGE_LIMIT: Final = 1000
"""Devices of one answer; the next page begins `after` the last one's name."""

_DEVICE: Final = "/operator/devices/{name}"

_Count = Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)]
_Short = Annotated[str, msgspec.Meta(max_length=253)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them have in common."""


class _Query(_Strict, frozen=True, kw_only=True):
    group: _Short | None = None
    state: DeviceState | None = None
    after: _Short = ""
    limit: _Count = PAGE_LIMIT


class _Nothing(_Strict, frozen=True, kw_only=True):
    """The body of a release."""


class _Approval(_Strict, frozen=True, kw_only=True):
    boot: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None


class _Quarantine(_Strict, frozen=True, kw_only=True):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


_B = TypeVar("_B", bound=_Strict)


class OperatorApi:
    """Answers operators. Each method's caller has told by the certificate that it is one."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        *,
        own_expiry: Callable[[], datetime],
        clock: Callable[[], datetime],
        body_timeout: float,
    ) -> None:
        """Prepares it.

        Args:
            registry: the devices.
            metrics: what the server counts.
            own_expiry: when the server's own certificate expires.
            clock: the time, in UTC.
            body_timeout: seconds that a request's body may take.
        """
        self._registry = registry
        self._metrics = metrics
        self._own_expiry = own_expiry
        self._clock = clock
        self._body_timeout = body_timeout

    def routes(self) -> tuple[OperatorRoute, ...]:
        """What there is."""
        return (
            OperatorRoute("GET", "/operator/devices", self._list),
            OperatorRoute("GET", _DEVICE, self._show),
            OperatorRoute("POST", f"{_DEVICE}/approve", self._approve),
            OperatorRoute("POST", f"{_DEVICE}/quarantine", self._quarantine),
            OperatorRoute("POST", f"{_DEVICE}/release", self._release),
            OperatorRoute("GET", "/metrics", self._metrics_text),
        )

    async def _list(self, request: web.BaseRequest, _: OperatorPeer, __: Mapping[str, str]) -> web.Response:
        asked, now = _query(request), self._clock()

        def page() -> list[dict[str, Any]]:
            found = self._registry.devices(
                group=asked.group, state=asked.state, now=now, after=asked.after, limit=asked.limit
            )
            return [device_facts(each, now=now) for each in found]

        devices = await asyncio.to_thread(page)
        return answer({"devices": devices, "next": devices[-1]["name"] if len(devices) == asked.limit else None})

    async def _show(self, _: web.BaseRequest, __: OperatorPeer, path: Mapping[str, str]) -> web.Response:
        name, now = path["name"], self._clock()

        def facts() -> dict[str, Any] | None:
            dossier = read_dossier(self._registry, name)
            return None if dossier is None else dossier_facts(dossier, now=now)

        found = await asyncio.to_thread(facts)
        if found is None:
            raise Refusal(404, "no such device")
        return answer(found)

    async def _approve(self, request: web.BaseRequest, operator: OperatorPeer, path: Mapping[str, str]) -> web.Response:
        body, name = await self._body(request, _Approval), path["name"]
        baseline = await self._change(
            name, lambda: self._registry.approve(name, by=operator.name, now=self._clock(), boot=body.boot)
        )
        return answer({"name": name, "boot": baseline.digest, "at": instant(baseline.at)})

    async def _quarantine(
        self, request: web.BaseRequest, operator: OperatorPeer, path: Mapping[str, str]
    ) -> web.Response:
        body, name = await self._body(request, _Quarantine), path["name"]
        now = self._clock()
        device = await self._change(
            name, lambda: self._registry.quarantine(name, reason=body.reason, by=operator.name, now=now)
        )
        return answer(device_facts(device, now=now))

    async def _release(self, request: web.BaseRequest, operator: OperatorPeer, path: Mapping[str, str]) -> web.Response:
        await self._body(request, _Nothing)
        name, now = path["name"], self._clock()
        device = await self._change(name, lambda: self._registry.release(name, by=operator.name, now=now))
        return answer(device_facts(device, now=now))

    async def _metrics_text(self, _: web.BaseRequest, __: OperatorPeer, ___: Mapping[str, str]) -> web.Response:
        summary = await asyncio.to_thread(self._registry.summary, self._clock())
        text = exposition(self._metrics, summary, own_expiry=self._own_expiry())
        return web.Response(body=text.encode(), headers=FIXED_HEADERS | {"Content-Type": CONTENT_TYPE})

    async def _change(self, name: str, change: Callable[[], _R]) -> _R:
        """What ``change`` returns; a device that there is not is 404, one in another state than it needs 409."""
        try:
            return await asyncio.to_thread(change)
        except StateError as error:
            known = await asyncio.to_thread(self._registry.device, name)
            raise Refusal(404 if known is None else 409, "no such device" if known is None else str(error)) from error

    async def _body(self, request: web.BaseRequest, kind: type[_B]) -> _B:
        body = await read_body(request, limit=BODY_LIMIT, timeout=self._body_timeout)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, "malformed body") from error


_R = TypeVar("_R")


def _query(request: web.BaseRequest) -> _Query:
    query = request.query
    if len(set(query)) != len(query):
        raise Refusal(400, "a parameter is there twice")
    try:
        return msgspec.convert(dict(query), _Query, strict=False)
    except msgspec.ValidationError as error:
        states = ", ".join(DeviceState)
        raise Refusal(400, f"malformed query: group, state ({states}), after, limit (to {PAGE_LIMIT})") from error
