"""Manifests of upstreams: by digest for ever, by tag for a while, and stale rather than not at all.

A tag younger than ``fresh_s`` is believed. An older one is asked for again by HEAD: in the background while
it is younger than ``revalidate_s`` too, else before the answer, for at most ``budget_s`` when there is
something to fall back on. A definite "no such image" is passed on, and remembered for ``absent_s``.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

import structlog

from ocikit import media_types
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import AccessError, BlobNotFound, ManifestNotFound, NotFound, OciError
from ocikit.manifest import MAX_MANIFEST_BYTES, Index, RawManifest, child_descriptors, parse_manifest_or_index
from registry_facade.addressing import Target
from registry_facade.breaker import Breaker
from registry_facade.cache.catalog import Catalog, TagRecord
from registry_facade.cache.memory import MemoryCache
from registry_facade.cache.storage import Storage
from registry_facade.errors import CacheUnusable
from registry_facade.metrics import FacadeMetrics
from registry_facade.sharing import is_marked
from registry_facade.sources.upstream import Upstreams
from servicekit.clock import Clock, SystemClock
from servicekit.single_flight import SingleFlight
from servicekit.tasks import BackgroundTasks

_log = structlog.get_logger(__name__)
_MEMORY_BYTES = 64 << 20


Described = Callable[[Sequence[Descriptor]], Awaitable[None]]
"""Hears what each manifest that comes in says of its layers."""


async def _undescribed(_layers: Sequence[Descriptor]) -> None:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Freshness:
    """How long what is known of tags is believed, in seconds."""

    fresh_s: float = 60.0
    revalidate_s: float = 600.0
    absent_s: float = 10.0
    budget_s: float = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class FoundManifest:
    """``stale`` says that the upstream could not confirm it, when it was last asked."""

    raw: RawManifest
    stale: bool = False


class Manifests:
    """Safe for concurrent use on one event loop."""

    def __init__(
        self,
        upstreams: Upstreams,
        storage: Storage,
        catalog: Catalog,
        metrics: FacadeMetrics,
        background: BackgroundTasks,
        *,
        described: Described = _undescribed,
        freshness: Freshness = Freshness(),
        clock: Clock = SystemClock(),
    ) -> None:
        self._upstreams = upstreams
        self._storage = storage
        self._catalog = catalog
        self._metrics = metrics
        self._background = background
        self._described = described
        self._freshness = freshness
        self._clock = clock
        self._by_digest: MemoryCache[tuple[Target, Digest], RawManifest] = MemoryCache(_MEMORY_BYTES)
        self._tags: MemoryCache[tuple[Target, str], TagRecord] = MemoryCache(100_000)
        self._absent: MemoryCache[tuple[Target, str], float] = MemoryCache(10_000)
        self._unconfirmed: MemoryCache[tuple[Target, str], str] = MemoryCache(10_000)
        self._flights: SingleFlight[tuple[Target, str], RawManifest] = SingleFlight()
        self._breakers: dict[str, Breaker] = {}
        self._counts: dict[str, Callable[[], None]] = {}

    def at_hand(self, target: Target, reference: str | Digest) -> RawManifest | None:
        """The answer if it needs no waiting at all."""
        if isinstance(reference, Digest):
            return self._by_digest.get((target, reference))
        record = self._tags.get((target, reference))
        if record is None or self._clock.time() - record.checked_s > self._freshness.fresh_s:
            return None
        return self._by_digest.get((target, record.digest))

    async def get(
        self, target: Target, reference: str | Digest, via: Upstreams | None = None
    ) -> FoundManifest:
        """Raises ManifestNotFound, AccessError, or what kept the upstream from answering.

        ``via``: in whose name a digest is fetched; tags are always asked for in the facade's own.
        """
        if (raw := self.at_hand(target, reference)) is not None:
            self._count("memory")
            return FoundManifest(raw)
        if isinstance(reference, Digest):
            return FoundManifest(await self._by_its_digest(target, reference, via))
        return await self._by_tag(target, reference)

    # ----- by digest -----

    async def _by_its_digest(self, target: Target, digest: Digest, via: Upstreams | None) -> RawManifest:
        raw = await self.from_cache(target, digest)
        if raw is not None:
            self._count("disk")
            return raw
        return await self._flights.do((target, digest), lambda: self._fetch(target, digest, via))

    async def from_cache(self, target: Target, digest: Digest) -> RawManifest | None:
        """Only a digest that was seen as a manifest: a layer must not be served as one."""
        if (raw := self._by_digest.get((target, digest))) is not None:
            return raw
        try:
            media_type = await self._catalog.media_type(digest)
            if media_type is None:
                return None
            raw = RawManifest(media_type, await self._storage.read(digest, MAX_MANIFEST_BYTES), digest)
        except (BlobNotFound, CacheUnusable):
            return None
        self._by_digest.put((target, digest), raw, len(raw.data))
        return raw

    async def _fetch(
        self, target: Target, reference: str | Digest, via: Upstreams | None = None
    ) -> RawManifest:
        upstream = (via or self._upstreams).named(target.upstream)
        repository = upstream.repository(target.repository)
        async with self.guarding(target):
            raw = await repository.manifest(reference)
        self._count("fetched")
        await self.remember(target, raw, "upstream")
        return raw

    async def issued(self, target: Target, digest: Digest) -> RawManifest | None:
        """A manifest that was remembered for exactly this target, or None."""
        if (raw := self._by_digest.get((target, digest))) is not None:
            return raw
        if not await self._catalog.has_manifest(target.upstream, target.repository, digest):
            return None
        return await self.from_cache(target, digest)

    async def remember(self, target: Target, raw: RawManifest, source: str) -> None:
        """Keeps a manifest, and what it refers to; a cache that cannot is no reason to fail."""
        self._by_digest.put((target, raw.digest), raw, len(raw.data))
        described = _children(raw)
        children = [(child.digest, child.size) for child in described]
        try:
            await self._storage.put(raw.digest, raw.data, source)
            await self._catalog.saw_manifest(
                target.upstream, target.repository, raw, children, self._clock.time()
            )
            if described and is_marked(parse_manifest_or_index(raw).annotations):
                await self._catalog.mark_unshared(raw.digest)
        except CacheUnusable as error:
            _log.warning("manifest_not_kept", digest=raw.digest, reason=str(error))
        await self._described(described)

    # ----- by tag -----

    async def _by_tag(self, target: Target, tag: str) -> FoundManifest:
        known = await self.known_tag(target, tag)
        held = await self.from_cache(target, known.digest) if known is not None else None
        if known is None or held is None:
            self._check_absent(target, tag)
            return FoundManifest(await self._flights.do((target, tag), lambda: self._learn(target, tag)))
        if self.is_fresh(known):
            self._count("disk")
            return FoundManifest(held)
        age_s = self._clock.time() - known.checked_s
        if age_s <= self._freshness.revalidate_s:
            _ = self._background.start(self._refresh(target, tag), name=f"revalidate {tag}")
            if (reason := self._unconfirmed.get((target, tag))) is not None:
                self.count_stale(target, tag, reason)
                return FoundManifest(held, stale=True)
            self._count("revalidating")
            return FoundManifest(held)
        return await self._confirmed(target, tag, held)

    def is_fresh(self, record: TagRecord) -> bool:
        """Whether it is believed without asking."""
        return self._clock.time() - record.checked_s <= self._freshness.fresh_s

    async def confirm(self, target: Target, tag: str, via: Upstreams) -> Digest:
        """What the tag stands for now, asked in the name of ``via``. Raises as `get` does."""
        async with self.guarding(target):
            current = await via.named(target.upstream).repository(target.repository).resolve(tag)
        await self.point(target, tag, current.digest)
        return current.digest

    async def known_tag(self, target: Target, tag: str) -> TagRecord | None:
        """What the tag stood for when it was last asked for."""
        record = self._tags.get((target, tag))
        if record is None:
            try:
                record = await self._catalog.tag(target.upstream, target.repository, tag)
            except CacheUnusable:
                return None
            if record is not None:
                self._tags.put((target, tag), record, 1)
        return record

    def _check_absent(self, target: Target, tag: str) -> None:
        until_s = self._absent.get((target, tag))
        if until_s is not None and self._clock.time() < until_s:
            self._count("absent")
            raise ManifestNotFound(f"{target.upstream}/{target.repository}:{tag}")

    async def _learn(self, target: Target, tag: str) -> RawManifest:
        try:
            raw = await self._fetch(target, tag)
        except NotFound:
            self._absent.put((target, tag), self._clock.time() + self._freshness.absent_s, 1)
            raise
        await self.point(target, tag, raw.digest)
        return raw

    async def point(self, target: Target, tag: str, digest: Digest) -> None:
        """Remembers what a tag stands for now."""
        record = TagRecord(digest, self._clock.time())
        self._tags.put((target, tag), record, 1)
        self._unconfirmed.drop((target, tag))
        try:
            await self._catalog.tagged(target.upstream, target.repository, tag, record)
        except CacheUnusable as error:
            _log.warning("tag_not_kept", tag=tag, reason=str(error))

    async def _confirmed(self, target: Target, tag: str, held: RawManifest) -> FoundManifest:
        """The current answer within the budget, else the one that is held."""
        flight = self._flights.do((target, tag), lambda: self._revalidate(target, tag))
        try:
            async with asyncio.timeout(self._freshness.budget_s):
                return FoundManifest(await flight)
        except (NotFound, AccessError):
            raise
        except (OciError, TimeoutError) as error:
            self.count_stale(target, tag, str(error) or f"no answer within {self._freshness.budget_s} s")
            return FoundManifest(held, stale=True)

    def count_stale(self, target: Target, tag: str, reason: str) -> None:
        """To be called for each answer that the upstream could not confirm."""
        _log.warning(
            "serving_stale",
            upstream=target.upstream,
            repository=target.repository,
            tag=tag,
            reason=reason,
        )
        self._metrics.stale_answers.inc()
        self._count("stale")

    async def _refresh(self, target: Target, tag: str) -> None:
        try:
            await self._flights.do((target, tag), lambda: self._revalidate(target, tag))
        except OciError as error:
            _log.info("revalidation_failed", upstream=target.upstream, tag=tag, reason=str(error))
            self._unconfirmed.put((target, tag), str(error), 1)

    async def _revalidate(self, target: Target, tag: str) -> RawManifest:
        repository = self._upstreams.named(target.upstream).repository(target.repository)
        try:
            async with self.guarding(target):
                current = await repository.resolve(tag)
        except NotFound:
            await self.purge_tag(target, tag)
            raise
        held = await self.from_cache(target, current.digest)
        if held is None:
            try:
                held = await self._fetch(target, current.digest)
            except NotFound:  # the tag has moved again, and what it meant in between is gone
                return await self._learn(target, tag)
        else:
            self._count("revalidated")
        await self.point(target, tag, current.digest)
        return held

    def forget(self, target: Target, digests: Collection[Digest]) -> None:
        """Drops manifests from memory; those of them that are on disk can still be read."""
        for digest in digests:
            self._by_digest.drop((target, digest))

    def forget_tag(self, target: Target, tag: str) -> None:
        """Drops what this process remembers of a tag."""
        self._tags.drop((target, tag))
        self._absent.drop((target, tag))

    async def purge_tag(self, target: Target, tag: str) -> bool:
        """Forgets what a tag stood for; the next pull asks the upstream."""
        self.forget_tag(target, tag)
        return await self._catalog.untag(target.upstream, target.repository, tag)

    # ----- lists -----

    async def tags(self, target: Target, via: Upstreams | None = None) -> Sequence[str]:
        """The upstream's tags; those that are known while it is away, but not for others than us."""
        upstream = (via or self._upstreams).named(target.upstream)
        try:
            async with self.guarding(target):
                return await upstream.repository(target.repository).tags()
        except (NotFound, AccessError):
            raise
        except OciError:
            if via is not None:
                raise
            known = await self._catalog.known_tags(target.upstream, target.repository)
            if not known:
                raise
            return known

    async def referrers(self, target: Target, digest: Digest, via: Upstreams | None = None) -> Index:
        upstream = (via or self._upstreams).named(target.upstream)
        async with self.guarding(target):
            return await upstream.referrers(target.repository, digest)

    def guarding(self, target: Target) -> AbstractAsyncContextManager[None]:
        """Around one request to the upstream; see `Breaker.guarding`."""
        return self._breakers.setdefault(target.upstream, Breaker(self._clock)).guarding()

    def _count(self, outcome: str) -> None:
        count = self._counts.get(outcome)
        if count is None:
            count = self._counts[outcome] = self._metrics.manifest_requests.labels(outcome).inc
        count()


def _children(raw: RawManifest) -> Sequence[Descriptor]:
    if raw.media_type not in media_types.MANIFESTS | media_types.INDEXES:
        return ()
    return child_descriptors(parse_manifest_or_index(raw))
