"""One event per request, cheaply: a busy mirror answers thousands a second, and a general logger costs more
than the answer.

The fields are those of `servicekit.web`; lines are gathered and written a few times a second, and at once
when the service ends.
"""

import asyncio
import datetime as dt
import functools
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TextIO

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from servicekit.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Field = str | int | float | bool
PULL_FIELDS = web.RequestKey("pull_fields", dict[str, Field])
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
_FLUSH_S = 0.2
_MAX_LINES = 1000


class AccessLog:
    """Lines of JSON to ``stream``. One event loop only; `close` writes what is left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= _MAX_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def access_middleware(metrics: Metrics, log: AccessLog) -> Middleware:
    """Counts, times and logs each request that is not a probe."""
    seconds = metrics.histogram(
        "facade_http_request_seconds", "Time from request to end of response.", ["kind", "method", "status"]
    )
    in_flight = metrics.gauge("facade_http_requests_in_flight", "Requests being answered.")
    observers: dict[tuple[str, str, int], Callable[[float], None]] = {}
    process, numbers = uuid.uuid4().hex[:20], itertools.count(1)

    def observe(kind: str, method: str, status: int, duration_s: float) -> None:
        key = (kind, method if method in {"GET", "HEAD"} else "other", status)
        if key not in observers:
            observers[key] = seconds.labels(kind, key[1], str(status)).observe
        observers[key](duration_s)

    @web.middleware
    async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _QUIET_PATHS:
            return await handler(request)
        request_id = request.headers.get("X-Request-Id", "")[:64] or f"{process}{next(numbers):012x}"
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started_s, status = time.perf_counter(), 500
        in_flight.inc()
        fields: dict[str, Field] = {"kind": "other"}
        request[PULL_FIELDS] = fields
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except (ConnectionError, asyncio.CancelledError):
            status = 499  # the client left; nginx's number, known to every dashboard
            raise
        finally:
            in_flight.dec()
            duration_s = time.perf_counter() - started_s
            observe(str(fields["kind"]), request.method, status, duration_s)
            log.write(_event(request, request_id, status, duration_s, fields))

    return measured


def _event(
    request: web.Request, request_id: str, status: int, duration_s: float, fields: dict[str, Field]
) -> str:
    now_s = time.time()
    known = _known_fields(request.method, request.path, status, request.remote, tuple(fields.items()))
    when = f"{_second(int(now_s))}.{int(now_s % 1 * 1e6):06d}Z"
    return (
        f'{{"event": "request", "level": "info", "timestamp": "{when}", "duration_s": {duration_s:.6f}'
        f', "request_id": {json.dumps(request_id)}, {known}}}'
    )


@functools.lru_cache(maxsize=1)
def _second(now_s: int) -> str:
    return dt.datetime.fromtimestamp(now_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


@functools.lru_cache(maxsize=4096)
def _known_fields(
    method: str, path: str, status: int, peer: str | None, fields: tuple[tuple[str, Field], ...]
) -> str:
    """What the events of one image's pulls have in common, without the outer braces."""
    common = {"method": method, "path": path, "status": status, "peer": peer}
    return json.dumps({**common, **dict(fields)})[1:-1]
