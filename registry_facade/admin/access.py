"""Who may administer: whoever shows the token, or, where none is set, whoever reaches the address."""

import hmac

from aiohttp import web
from aiohttp.typedefs import Middleware

from registry_facade.responses import json_error
from servicekit.secrets import Secret
from servicekit.web import Handler

PREFIX = "/facade/v1/"
OPENAPI = f"{PREFIX}openapi.json"


def admin_middleware(token: Secret) -> Middleware:
    """Guards every path below `PREFIX` but the API's own description."""
    wanted = f"Bearer {token.reveal()}".encode()

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token and request.path.startswith(PREFIX) and request.path != OPENAPI:
            shown = request.headers.get("Authorization", "").encode(errors="replace")
            if not hmac.compare_digest(shown, wanted):
                challenge = {"WWW-Authenticate": "Bearer"}
                return json_error(401, "UNAUTHORIZED", "administration takes the admin_token", challenge)
        return await handler(request)

    return guarded
