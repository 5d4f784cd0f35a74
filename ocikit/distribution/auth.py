"""Challenges and tokens (RFC 7235; the Docker token protocol that every registry speaks).

Credentials go to the realm that the registry they belong to has named, and only over TLS, or to the
registry's own host: a mirror must not be able to send our password elsewhere in the clear.
"""

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from ocikit.distribution.credentials import CredentialProvider, Credentials
from ocikit.distribution.transport import Response, Transport
from ocikit.errors import Denied, Unauthorized

_SCHEME = re.compile(r"^\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_TOKEN_LIFETIME_S = 60.0
_TOKEN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate challenge; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge of a header; None when there is none that can be read."""
    match = _SCHEME.match(header)
    if match is None:
        return None
    parameters: dict[str, str] = {}
    at = match.end()
    while at < len(header) and (parameter := _PARAMETER.match(header, at)) is not None:
        quoted = parameter[2]
        parameters[parameter[1].lower()] = (
            re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
        )
        at = parameter.end()
    return Challenge(match[1].lower(), parameters)


def pull_scope(repository: str) -> str:
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    return f"repository:{repository}:pull,push"


@dataclass
class Authorizer:
    """Answers challenges of one registry and remembers what worked, per set of scopes.

    Concurrent requests may fetch the same token twice; that is harmless.
    """

    registry: str
    origin: str
    transport: Transport
    provider: CredentialProvider
    _headers: dict[tuple[str, ...], tuple[str, float]] = field(default_factory=dict)

    def header(self, scopes: Sequence[str]) -> str | None:
        """An Authorization value that may still work; None means: try without."""
        found = self._headers.get(tuple(scopes))
        return found[0] if found is not None and found[1] > time.monotonic() else None

    async def answer(self, response: Response, scopes: Sequence[str]) -> str:
        """The Authorization value that a 401 asks for. Raises Unauthorized or Denied."""
        repository = scopes[0].split(":")[1] if scopes else ""
        challenges = [parse_challenge(value) for value in response.headers.getall("WWW-Authenticate", [])]
        by_scheme = {challenge.scheme: challenge for challenge in challenges if challenge is not None}
        credentials = await self.provider.credentials(self.registry)
        if "bearer" in by_scheme:
            value, lifetime_s = await self._token(by_scheme["bearer"], scopes, credentials, repository)
        elif "basic" in by_scheme and credentials is not None:
            value, lifetime_s = _basic(credentials), float("inf")
        else:
            raise Unauthorized(self.registry, repository)
        self._headers[tuple(scopes)] = (value, time.monotonic() + lifetime_s)
        return value

    def forget(self, scopes: Sequence[str]) -> None:
        self._headers.pop(tuple(scopes), None)

    async def _token(
        self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials | None, repository: str
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        asked = list(scopes) or challenge.parameters.get("scope", "").split()
        service = challenge.parameters.get("service", "")
        query = [("service", service)] * bool(service) + [("scope", scope) for scope in asked]
        if credentials is not None and credentials.identity is not None:
            form = urlencode(
                [
                    *query[:1],
                    ("scope", " ".join(asked)),
                    ("grant_type", "refresh_token"),
                    ("client_id", "lapstrake"),
                    ("refresh_token", credentials.identity.reveal()),
                ]
            )
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            request = self.transport.send("POST", realm, headers=headers, data=form.encode())
        else:
            headers = {} if credentials is None else {"Authorization": _basic(credentials)}
            separator = "&" if "?" in realm else "?"
            request = self.transport.send("GET", realm + separator + urlencode(query), headers=headers)
        async with request as response:
            if response.status in {401, 403}:
                raise Unauthorized(self.registry, repository)
            if response.status != 200:
                raise Denied(self.registry, repository, f"its token service answered {response.status}")
            return _read_token(await response.read(_TOKEN_BYTES), self.registry, repository)

    def _check_realm(self, realm: str) -> None:
        parts = urlsplit(realm)
        own_host = f"{parts.scheme}://{parts.netloc}" == self.origin
        if not parts.netloc or (parts.scheme != "https" and not own_host):
            raise Denied(
                self.registry,
                "",
                f"its token realm {parts.scheme}://{parts.netloc} is neither TLS nor its own",
            )


def _read_token(data: bytes, registry: str, repository: str) -> tuple[str, float]:
    try:
        answer = json.loads(data)
        token = answer.get("token") or answer["access_token"]
        lifetime_s = float(answer.get("expires_in") or _TOKEN_LIFETIME_S)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Denied(registry, repository, "its token service sent no token") from error
    return f"Bearer {token}", max(_TOKEN_LIFETIME_S, lifetime_s) * 0.9


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
