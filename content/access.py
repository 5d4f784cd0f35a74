"""Who may ask for what: bearer tokens, each for the workspaces of one owner, or ``*`` for all."""

import hmac
import json
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from content.problems import Forbidden, Unauthenticated
from servicekit.secrets import Secret
from servicekit.settings import SettingsInvalid
from servicekit.web import Handler

OWNER = web.RequestKey("owner", str)
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})
ANY = "*"


class Tokens:
    """Without any token everybody may ask; that is for loopback only."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        self._owners = [(token.encode(), owner) for token, owner in owners.items()]

    def __bool__(self) -> bool:
        return bool(self._owners)

    def owner(self, header: str | None) -> str:
        """The owner that an Authorization header speaks for. Raises Unauthenticated."""
        if not self._owners:
            return ANY
        scheme, _, token = (header or "").partition(" ")
        found = None
        for known, owner in self._owners:  # all are compared, so that time tells nothing
            if hmac.compare_digest(known, token.strip().encode(errors="replace")):
                found = owner
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated
        return found


def read_tokens(file: Path | None, admin: Secret | None) -> Tokens:
    """Raises SettingsInvalid. Blocking."""
    owners: dict[str, str] = {}
    if file is not None:
        try:
            owners = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not JSON"
            raise SettingsInvalid([f"content.tokens_file: {file}: {reason}"]) from None
        texts = isinstance(owners, dict) and all(isinstance(owner, str) for owner in owners.values())
        if not texts or not all(len(token) >= 16 for token in owners):
            problem = f"content.tokens_file: {file}: must map tokens of 16 characters or more to owners"
            raise SettingsInvalid([problem])
    if admin:
        owners[admin.reveal()] = ANY
    return Tokens(owners)


def token_middleware(tokens: Tokens) -> Middleware:
    """Finds the owner of each request; probes and the API's description are open."""

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN_PATHS:
            request[OWNER] = tokens.owner(request.headers.get("Authorization"))
        return await handler(request)

    return authenticated


def require_owner(request: web.Request, owner: str) -> None:
    """Raises Forbidden."""
    if request[OWNER] not in {ANY, owner}:
        raise Forbidden(owner)
