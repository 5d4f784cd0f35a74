"""Errors of the API as problem+json (RFC 9457), by one table."""

from typing import Any

import structlog
from aiohttp import web

from content.errors import (
    AccessError,
    ConflictError,
    ContentError,
    IntegrityError,
    InvalidInput,
    LocalDiskError,
    NotFound,
    ObjectStoreError,
)
from content.presigning import LinkInvalid
from servicekit.web import Handler

_log = structlog.get_logger(__name__)
_STATUS: tuple[tuple[type[ContentError], int], ...] = (
    # the first class that fits decides
    (NotFound, 404),
    (InvalidInput, 400),
    (IntegrityError, 502),
    (AccessError, 502),
    (ObjectStoreError, 503),
    (ConflictError, 409),
    (LocalDiskError, 507),
)


class Unauthenticated(ContentError):
    def __init__(self) -> None:
        super().__init__("a valid bearer token, or a known client certificate, is needed")


class Forbidden(ContentError):
    def __init__(self, owner: str) -> None:
        super().__init__(f"this caller is not for workspaces of {owner}")


def problem(status: int, title: str, detail: str, **more: Any) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, **more},
        status=status,
        content_type="application/problem+json",
        headers=headers,
    )


def status_of(error: ContentError) -> int:
    if isinstance(error, Unauthenticated):
        return 401
    if isinstance(error, (Forbidden, LinkInvalid)):
        return 403
    return next((status for cls, status in _STATUS if isinstance(error, cls)), 500)


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure of the API as a problem document; the unexpected is logged and named only by kind."""
    try:
        return await handler(request)
    except ContentError as error:
        return problem(status_of(error), type(error).__name__, str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        made = problem(error.status, error.reason, error.text or error.reason)
        if "Allow" in error.headers:
            made.headers["Allow"] = error.headers["Allow"]
        return made
    except Exception as error:  # noqa: BLE001 (the boundary of a request)
        _log.exception("request_failed", path=request.path)
        return problem(500, type(error).__name__, "the request failed unexpectedly; the log says more")
