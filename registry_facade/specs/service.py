"""Image specs from a service: ``GET <url>/<image-id>``, JSON as in the directory's files.

An entity tag that the service gives is shown again, so that an unchanged spec costs no body. mTLS and a
bearer token, read from its file for each request, say who we are.
"""

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ocikit.distribution.transport import Transport
from ocikit.errors import OciError, SourceUnavailable
from ocikit.reference import is_repository
from registry_facade.cache.memory import MemoryCache
from registry_facade.errors import ImageSpecNotFound
from registry_facade.image_spec import ImageSpec, parse_image_spec
from registry_facade.specs.store import MAX_SPEC_BYTES
from servicekit.settings import SettingsInvalid

_NAME = "image spec service"


@dataclass(frozen=True)
class ServiceSpecs:
    """The transport is its owner's."""

    url: str
    transport: Transport
    token_file: Path | None
    upstreams: Collection[str]
    _seen: MemoryCache[str, tuple[str, ImageSpec]] = field(default_factory=lambda: MemoryCache(10_000))

    async def spec(self, image_id: str) -> ImageSpec:
        """Raises ImageSpecNotFound, ImageSpecInvalid, or SourceUnavailable."""
        if not is_repository(image_id):
            raise ImageSpecNotFound(image_id)
        known = self._seen.get(image_id)
        headers = {"Accept": "application/json", **await self._shown()}
        if known is not None:
            headers["If-None-Match"] = known[0]
        try:
            async with self.transport.send(
                "GET", f"{self.url.rstrip('/')}/{image_id}", headers=headers
            ) as response:
                data = await response.read(MAX_SPEC_BYTES)
        except OciError as error:
            raise SourceUnavailable(_NAME, str(error)) from error
        match response.status:
            case 200 if len(data) <= MAX_SPEC_BYTES:
                spec = parse_image_spec(data, image_id, upstreams=self.upstreams, directory=None)
            case 304 if known is not None:
                return known[1]
            case 404 | 410:
                self._seen.drop(image_id)
                raise ImageSpecNotFound(image_id)
            case status:
                raise SourceUnavailable(_NAME, f"it answers with status {status} and {len(data)} bytes")
        if etag := response.headers.get("ETag"):
            self._seen.put(image_id, (etag, spec), 1)
        return spec

    async def _shown(self) -> dict[str, str]:
        if self.token_file is None:
            return {}
        try:
            token = await asyncio.to_thread(self.token_file.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(_NAME, f"its token cannot be read: {error}") from error
        return {"Authorization": f"Bearer {token.strip()}"}


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """None: the system's trust and no certificate of ours. Blocking. Raises SettingsInvalid."""
    if ca is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsInvalid(
            [f"facade.spec_service: {error.strerror or error}: {ca or certificate}"]
        ) from error
    return context
