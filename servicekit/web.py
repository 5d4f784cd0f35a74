"""What every HTTP service here has in common: request ids, one access event, probes, metrics.

The access event is written once per request, with what the handler added by `add_access_fields`; probes
and scrapes are not logged. Readiness is the service's own word; liveness never asks anything remote.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from servicekit.metrics import CONTENT_TYPE, Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger("access")
_ACCESS_FIELDS = web.RequestKey("access_fields", dict[str, Any])
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class Readiness:
    """Why the process should not get new work just now; ready while there is no reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def refuse(self, topic: str, reason: str) -> None:
        self._reasons[topic] = reason

    def accept(self, topic: str) -> None:
        self._reasons.pop(topic, None)

    @property
    def reasons(self) -> dict[str, str]:
        return dict(self._reasons)


def add_access_fields(request: web.Request, **fields: Any) -> None:
    """Adds fields to this request's access event."""
    request.setdefault(_ACCESS_FIELDS, {}).update(fields)


def access_middleware(metrics: Metrics, *, service: str) -> Middleware:
    """Counts, times and logs each request; ``service`` prefixes the metric names."""
    seconds = metrics.histogram(
        f"{service}_http_request_seconds",
        "Time from request to end of response.",
        ["route", "method", "status"],
    )
    in_flight = metrics.gauge(f"{service}_http_requests_in_flight", "Requests being answered.")

    @web.middleware
    async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _QUIET_PATHS:
            return await handler(request)
        request_id = request.headers.get("X-Request-Id", "")[:64] or uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started_s = time.perf_counter()
        status, size_bytes = 500, 0
        in_flight.inc()
        try:
            response = await handler(request)
            status, size_bytes = response.status, getattr(response, "body_length", 0) or 0
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except ConnectionError:
            status = 499  # the client left; nginx's number, known to every dashboard
            raise
        finally:
            in_flight.dec()
            duration_s = time.perf_counter() - started_s
            route = _route_pattern(request)
            seconds.labels(route, request.method, str(status)).observe(duration_s)
            _log.info(
                "request",
                method=request.method,
                route=route,
                path=request.path,
                status=status,
                sent_bytes=size_bytes,
                duration_s=round(duration_s, 6),
                peer=request.remote,
                **request.get(_ACCESS_FIELDS, {}),
            )
            structlog.contextvars.unbind_contextvars("request_id")

    return measured


def _route_pattern(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


def operations_routes(
    metrics: Metrics, readiness: Readiness, render: Callable[[], Awaitable[bytes]] | None = None
) -> list[web.RouteDef]:
    """``/livez``, ``/readyz`` and ``/metrics``; ``render`` makes the last where ``metrics`` is not all."""

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reasons = readiness.reasons
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def exposition(_request: web.Request) -> web.Response:
        body = metrics.render() if render is None else await render()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)]
