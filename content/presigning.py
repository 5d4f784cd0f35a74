"""Addresses under which one snapshot's tar can be fetched without a token, for a while.

S3 makes them itself. For other stores the agent signs its own, with a secret that lives as long as it does;
both name one object and an end.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from urllib.parse import urlencode

from content.errors import ContentError
from content.objects.base import ObjectSource


class LinkInvalid(ContentError):
    def __init__(self) -> None:
        super().__init__("this link is not valid, or not any more")


@runtime_checkable
class Presigner(Protocol):
    """A store that makes addresses of its own."""

    async def presign(self, key: str, *, expires_s: int, file_name: str) -> str: ...


def presigner(store: ObjectSource) -> Presigner | None:
    """The innermost store, when it can; wrappers have nothing to say here."""
    inner: object = store
    while not isinstance(inner, Presigner) and hasattr(inner, "inner"):
        inner = inner.inner
    return inner if isinstance(inner, Presigner) else None


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Signs paths of this agent."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def sign(self, path: str, expires_at_s: int) -> str:
        """``path`` with a query that makes it valid until then."""
        return f"{path}?{urlencode({'expires': expires_at_s, 'signature': self._mac(path, expires_at_s)})}"

    def check(self, path: str, expires: str, signature: str, now_s: float) -> None:
        """Raises LinkInvalid."""
        number = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 16 else 0
        given = signature.encode(errors="replace")
        valid = hmac.compare_digest(self._mac(path, number).encode(), given)
        if not valid or number < now_s:
            raise LinkInvalid

    def _mac(self, path: str, expires_at_s: int) -> str:
        return hmac.new(self.secret, f"{expires_at_s} {path}".encode(), hashlib.sha256).hexdigest()
