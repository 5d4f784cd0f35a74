"""Who is asking: a token of ours, or somebody's credential for the upstream, or nobody known."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ocikit.distribution.credentials import Credentials
from registry_facade.errors import CallerUnknown
from registry_facade.tenancy.tokens import Grants, TokenFile
from servicekit.secrets import Secret


@dataclass(frozen=True, slots=True)
class Caller:
    """``key`` names them in what is kept, and tells nothing of their secret; ``name`` is for logs.

    ``grants`` are those of a token; without them ``credentials``, None for nobody, are shown upstream.
    """

    key: str
    name: str
    grants: Grants | None = None
    credentials: Credentials | None = None

    @property
    def is_anonymous(self) -> bool:
        return self.grants is None and self.credentials is None


ANONYMOUS = Caller("anonymous", "anonymous")


@dataclass(frozen=True)
class Callers:
    """``delegated``: credentials that are no token are accepted here, to be judged upstream."""

    tokens: TokenFile
    pepper: bytes
    delegated: bool

    async def identify(self, header: str | None) -> Caller:
        """From an Authorization header. Raises CallerUnknown."""
        scheme, _, value = (header or "").partition(" ")
        match scheme.lower():
            case "basic":
                return await self._basic(value.strip())
            case "bearer":
                caller = await self._token(value.strip())
            case "":
                caller = ANONYMOUS if self.delegated else None
            case _:
                caller = None
        if caller is None:
            raise CallerUnknown
        return caller

    async def _basic(self, value: str) -> Caller:
        """An empty pair is how skopeo shows that it has none."""
        try:
            username, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise CallerUnknown from error
        if (caller := await self._token(password)) is not None:
            return caller
        if not self.delegated:
            raise CallerUnknown
        if not username and not password:
            return ANONYMOUS
        key = hmac.new(self.pepper, f"{username}\0{password}".encode(), hashlib.sha256).hexdigest()
        return Caller(key, f"user:{username}", credentials=Credentials(username, Secret(password)))

    async def _token(self, token: str) -> Caller | None:
        grants = await self.tokens.grants(token)
        return Caller(f"token:{grants.name}", f"token:{grants.name}", grants) if grants is not None else None


def read_pepper(path: Path) -> bytes:
    """32 random bytes, made once and shared by the workers; blocking. Raises OSError.

    With it, what is kept of callers cannot be used to try passwords.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            os.write(descriptor, secrets.token_bytes(32))
            os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.close(descriptor)
            Path(name).unlink()
    return path.read_bytes()
