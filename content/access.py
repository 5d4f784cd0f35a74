"""Who may ask for what: bearer tokens and client certificates, each for the workspaces of one owner, or ``*``
for all.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from content.problems import Forbidden, Unauthenticated
from servicekit.secrets import Secret
from servicekit.settings import SettingsInvalid
from servicekit.web import Handler

OWNER = web.RequestKey("owner", str)
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})
DOWNLOADS = "/v1/downloads"
ANY = "*"
_MIN_TOKEN_CHARS = 16


@dataclass(slots=True)
class Callers:
    """Owners by token, and by name in a client certificate (``CN:...``, ``DNS:...``, ``URI:...``).

    Without any of them everybody may ask; that is for loopback only. May be replaced while it is used.
    """

    tokens: Mapping[str, str]
    certificates: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tokens) or bool(self.certificates)

    def take_over(self, other: "Callers") -> None:
        """From now on, as ``other``."""
        self.tokens, self.certificates = other.tokens, other.certificates

    def owner(self, header: str | None, certificate: Mapping[str, Any] | None = None) -> str:
        """The owner that a request speaks for. ``certificate`` was verified by TLS; a token that is given
        counts alone. Raises Unauthenticated.
        """
        if not self:
            return ANY
        if header is not None:
            return self._of_token(header)
        for name in certificate_names(certificate or {}):
            if (owner := self.certificates.get(name)) is not None:
                return owner
        raise Unauthenticated

    def _of_token(self, header: str) -> str:
        scheme, _, token = header.partition(" ")
        found, given = None, token.strip().encode(errors="replace")
        for known, owner in self.tokens.items():  # all are compared, so that time tells nothing
            if hmac.compare_digest(known.encode(), given):
                found = owner
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated
        return found


def certificate_names(certificate: Mapping[str, Any]) -> list[str]:
    """The names in what `ssl.SSLSocket.getpeercert` gives; alternative names first."""
    found = [f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ())]
    for rows in certificate.get("subject", ()):
        found += [f"CN:{value}" for key, value in rows if key == "commonName"]
    return found


def read_callers(tokens_file: Path | None, admin: Secret | None, certificates_file: Path | None) -> Callers:
    """Raises SettingsInvalid. Blocking."""
    tokens = _owners("tokens_file", tokens_file)
    if not all(len(token) >= _MIN_TOKEN_CHARS for token in tokens):
        problem = (
            f"content.tokens_file: {tokens_file}: tokens must have {_MIN_TOKEN_CHARS} characters or more"
        )
        raise SettingsInvalid([problem])
    certificates = _owners("certificates_file", certificates_file)
    if not all(name.startswith(("CN:", "DNS:", "URI:")) for name in certificates):
        problem = f"content.certificates_file: {certificates_file}: names must begin with CN:, DNS: or URI:"
        raise SettingsInvalid([problem])
    if admin:
        tokens[admin.reveal()] = ANY
    return Callers(tokens, certificates)


def _owners(setting: str, file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        owners = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise SettingsInvalid([f"content.{setting}: {file}: {reason}"]) from None
    if not isinstance(owners, dict) or not all(isinstance(owner, str) for owner in owners.values()):
        raise SettingsInvalid([f"content.{setting}: {file}: must be an object of owners by name"])
    return owners


def caller_middleware(callers: Callers) -> Middleware:
    """Finds the owner of each request; probes, the API's description and signed links are open."""

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN_PATHS and not request.path.startswith(f"{DOWNLOADS}/"):
            certificate = request.get_extra_info("peercert")
            request[OWNER] = callers.owner(request.headers.get("Authorization"), certificate)
        return await handler(request)

    return authenticated


def require_owner(request: web.Request, owner: str) -> None:
    """Raises Forbidden."""
    if request[OWNER] not in {ANY, owner}:
        raise Forbidden(owner)
