"""From a reference to blobs in the cache, one at a time, giving way to real pulls.

A blob that a client asks for meanwhile is a real pull from then on: it is neither limited nor paused.
"""

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidReference, OciError
from ocikit.manifest import Manifest, child_descriptors, parse_manifest_or_index
from ocikit.ranges import ByteRange
from ocikit.repository import choose_platform
from registry_facade.addressing import COMPOSED, Target
from registry_facade.errors import CacheUnusable
from registry_facade.image_spec import parse_image_ref
from registry_facade.pulls import Pulls
from registry_facade.sources.read_through import ReadThrough
from registry_facade.warming.metrics import WarmMetrics
from servicekit.throttle import Throttle

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of one image; ``error`` is empty when all of it is in the cache now."""

    image: str
    digest: str = ""
    fetched_blobs: int = 0
    fetched_bytes: int = 0
    there_blobs: int = 0
    there_bytes: int = 0
    error: str = ""

    def dump(self) -> Mapping[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class _Image:
    target: Target
    digest: Digest
    children: Sequence[Descriptor]


@dataclass(frozen=True, slots=True)
class _Gently:
    """Moves bytes only while no client waits for any, and no faster than it may."""

    cache: ReadThrough
    throttle: Throttle

    async def acquire(self, size_bytes: int) -> None:
        await self.cache.quiet()
        await self.throttle.acquire(size_bytes)


class Warmer:
    """Safe for concurrent use on one event loop."""

    def __init__(
        self,
        pulls: Pulls,
        cache: ReadThrough,
        upstreams: frozenset[str],
        default_upstream: str,
        metrics: WarmMetrics,
    ) -> None:
        self._pulls = pulls
        self._cache = cache
        self._upstreams = upstreams
        self._default = default_upstream
        self._metrics = metrics

    async def warm(
        self, images: Sequence[str], platform: Platform | None = None, rate_bytes_s: float | None = None
    ) -> AsyncIterator[Warmed]:
        """One result for each image, as it ends; an image that fails does not keep the others from coming."""
        gently = _Gently(self._cache, Throttle(rate_bytes_s))
        for text in images:
            try:
                result = await self._image(text, platform, gently)
            except OciError as error:
                result = Warmed(text, error=str(error))
            outcome = "failed" if result.error else "fetched" if result.fetched_blobs else "there"
            self._metrics.images.labels(outcome).inc()
            _log.info("warmed", **result.dump())
            yield result

    async def _image(self, text: str, platform: Platform | None, gently: _Gently) -> Warmed:
        image = await self._resolved(text, platform)
        result = Warmed(text, image.digest)
        for child in {child.digest: child for child in image.children}.values():
            result = await self._blob(result, image.target, child, gently)
        return result

    async def _resolved(self, text: str, platform: Platform | None) -> _Image:
        """The manifest and its children; of an index those of ``platform``."""
        target, reference = self._named(text)
        raw = (await self._pulls.manifest(target, reference)).raw
        document = parse_manifest_or_index(raw)
        if not isinstance(document, Manifest):
            chosen = choose_platform(document, platform, text)
            raw = (await self._pulls.manifest(target, chosen.digest)).raw
        return _Image(target, raw.digest, child_descriptors(parse_manifest_or_index(raw)))

    def _named(self, text: str) -> tuple[Target, str | Digest]:
        """As image specs write it, or ``workspaces/ID``. Raises InvalidReference."""
        first, _, rest = text.partition("/")
        if first == COMPOSED and rest:
            return Target(COMPOSED, rest), "latest"
        name = text if first in self._upstreams or not self._default else f"{self._default}/{text}"
        try:
            found = parse_image_ref(name, self._upstreams)
        except ValueError as error:
            raise InvalidReference(text, str(error)) from error
        return found.target, found.reference

    async def _blob(self, so_far: Warmed, target: Target, child: Descriptor, gently: _Gently) -> Warmed:
        """Raises what the sources said, or CacheUnusable when the cache cannot take it."""
        locate = self._pulls.locate(target, child.digest)
        async with self._cache.open(child.digest, locate, gently=gently) as blob:
            if blob.served_from in {"memory", "disk"}:
                self._metrics.blobs.labels("there").inc()
                return dataclasses.replace(
                    so_far,
                    there_blobs=so_far.there_blobs + 1,
                    there_bytes=so_far.there_bytes + blob.size,
                )
            if blob.served_from == "passing":
                raise CacheUnusable(str(child.digest), "there is no room for it in the cache")
            async for _ in blob.parts(ByteRange().resolve(blob.size)):
                pass  # a span of a file costs nothing
        await self._cache.settled(child.digest)
        self._metrics.blobs.labels("fetched").inc()
        self._metrics.fetched_bytes.inc(blob.size)
        return dataclasses.replace(
            so_far,
            fetched_blobs=so_far.fetched_blobs + 1,
            fetched_bytes=so_far.fetched_bytes + blob.size,
        )
