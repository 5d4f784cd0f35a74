"""Every blob by one way: from memory or disk, from the download under way, or from a new download.

However many ask, a blob is downloaded once per node; see `registry_facade.cache.download`.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, IntegrityError, OciError, SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.cache.claims import Claim, Claims
from registry_facade.cache.download import Download, Gently, Hooks
from registry_facade.cache.growing import GrowingBlob
from registry_facade.cache.memory import MemoryCache
from registry_facade.cache.storage import Storage
from registry_facade.errors import AlreadyStored, CacheUnusable, ClaimedElsewhere
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import FileSpan, OpenBlob, Part, read_parts
from registry_facade.sharing import Audience
from registry_facade.sources.chain import Origin, Selection
from registry_facade.sources.fellows import FellowBlob, Fellows
from registry_facade.sources.hedging import Hedge
from registry_facade.sources.neighbours import NO_NEIGHBOURS, Neighbours
from registry_facade.sources.pace import Paces
from registry_facade.sources.passing import PassingBlob
from servicekit.tasks import BackgroundTasks

_log = structlog.get_logger(__name__)
_RECLAIM_S = 0.05
"""Between two attempts to read from, or take over from, a fellow worker that has just gone."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a blob can be had, nearest first, its size when a manifest has told it, and who may have it."""

    origins: Sequence[Origin]
    size: int | None = None
    audience: Audience = Audience.CLUSTER


Locate = Callable[[], Awaitable[Located]]
"""Finds the origins of a blob; only called when the cache has not got it."""


Stored = Callable[[Digest, int], None]
"""Hears the digest and size of a blob that came in; soon done, never raises."""


class ReadThrough:
    """Safe for concurrent use on one event loop.

    ``neighbours`` hear of each blob that came in, and of what they gave that was not the blob.
    """

    def __init__(
        self,
        storage: Storage,
        metrics: FacadeMetrics,
        background: BackgroundTasks,
        *,
        linger_s: float,
        claims: Claims,
        neighbours: Neighbours = NO_NEIGHBOURS,
    ) -> None:
        self.storage = storage
        self._metrics = metrics
        self._background = background
        self._linger_s = linger_s
        self._claims = claims
        self._fellows = Fellows()
        self._neighbours = neighbours
        self._told: list[Stored] = []
        self._readers = 0
        self._paces = Paces()
        self._hedge = Hedge(self._paces, metrics, background)
        self._downloads: dict[Digest, Download] = {}
        self._tallies: MemoryCache[Digest, Counter[str]] = MemoryCache(10_000)
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(
        self, digest: Digest, locate: Locate, *, start: int = 0, gently: Gently | None = None
    ) -> AsyncIterator[OpenBlob]:
        """``start`` is where the caller will read first. Raises what the sources said.

        ``gently`` paces a download that nobody waits for; anybody who does frees it.
        """
        is_waited_for = gently is None
        self._readers += is_waited_for
        try:
            async with contextlib.AsyncExitStack() as stack:
                yield await self._open(digest, locate, start, stack, gently)
        finally:
            self._readers -= is_waited_for

    @property
    def is_read(self) -> bool:
        """Whether somebody is reading a blob, or waits for one."""
        return self._readers > 0

    def tell(self, stored: Stored) -> None:
        """From now on ``stored`` hears of each blob that comes in."""
        self._told.append(stored)

    async def quiet(self) -> None:
        """Returns when nothing is being downloaded that somebody waits for."""
        while any(download.is_open and download.gently is None for download in self._downloads.values()):
            await self._ended.wait()

    async def settled(self, digest: Digest) -> None:
        """Returns when no download of it is running: it was published, or failed."""
        download = self._downloads.get(digest)
        if download is not None and download.task is not None:
            await asyncio.wait({download.task})

    async def stat(self, digest: Digest, locate: Locate) -> int:
        """The size, without downloading. Raises what the sources said."""
        if (size := await self._stored_size(digest)) is not None:
            return size
        located = await locate()
        if (size := await self._stored_size(digest)) is not None:
            return size
        selection = Selection(digest, located.origins)
        while True:
            origin = selection.next()
            try:
                return (await origin.source.stat(digest)).size
            except OciError as error:
                selection.failed(origin, error)

    async def _stored_size(self, digest: Digest) -> int | None:
        async with contextlib.AsyncExitStack() as stack:
            with contextlib.suppress(BlobNotFound, CacheUnusable):
                return (self.storage.in_memory(digest) or await self.storage.open(digest, stack)).size
        return None

    async def _open(
        self,
        digest: Digest,
        locate: Locate,
        start: int,
        stack: contextlib.AsyncExitStack,
        gently: Gently | None,
    ) -> OpenBlob:
        while True:
            if (held := self.storage.in_memory(digest)) is not None:
                return held
            try:
                if not self._is_coming(digest):
                    with contextlib.suppress(BlobNotFound):
                        return await self.storage.open(digest, stack)
                if not self._is_coming(digest):
                    located = await locate()
                    if not self._is_coming(digest):
                        self._start(digest, located, start, gently)
                return await self._join(self._downloads[digest], stack, gently)
            except AlreadyStored:
                await self._end_of_download(digest)
            except ClaimedElsewhere as claimed:
                with contextlib.suppress(SourceUnavailable, BlobNotFound):
                    return await self._follow(digest, claimed.address, locate)
                await asyncio.sleep(_RECLAIM_S)
            except CacheUnusable as error:
                return await self._past_the_cache(digest, locate, error)

    async def _end_of_download(self, digest: Digest) -> None:
        """A download whose blob is stored has only to tidy up, and must be let: asking again would spin."""
        download = self._downloads.get(digest)
        if download is not None and download.task is not None:
            await asyncio.wait({download.task})

    async def _past_the_cache(self, digest: Digest, locate: Locate, error: CacheUnusable) -> OpenBlob:
        _log.warning("passing_through", digest=digest, reason=str(error))
        located = await locate()
        return await PassingBlob.open(digest, located.origins, located.size, self._received)

    async def _follow(self, digest: Digest, address: str, locate: Locate) -> OpenBlob:
        """What a fellow worker is downloading. Raises SourceUnavailable or BlobNotFound when it is gone."""
        async with self._fellows.get(address, digest, 0, 1) as (size, _):
            return FellowBlob(
                digest, size, address, self._fellows, lambda at: self.open(digest, locate, start=at)
            )

    @contextlib.asynccontextmanager
    async def open_own(self, digest: Digest) -> AsyncIterator[OpenBlob]:
        """What this process is downloading or has, for its fellows. Raises BlobNotFound."""
        async with contextlib.AsyncExitStack() as stack:
            download = self._downloads.get(digest)
            if download is not None and download.is_open:
                yield await self._join(download, stack, None)
            else:
                yield await self.storage.open(digest, stack)

    async def _join(
        self, download: Download, stack: contextlib.AsyncExitStack, gently: Gently | None
    ) -> OpenBlob:
        if gently is None:
            download.gently = None
        blob = await stack.enter_async_context(download.attached())
        descriptor = blob.duplicate()
        stack.callback(os.close, descriptor)
        return _ComingBlob(download, blob, descriptor, self._metrics)

    def _is_coming(self, digest: Digest) -> bool:
        download = self._downloads.get(digest)
        return download is not None and download.is_open

    def _start(self, digest: Digest, located: Located, start: int, gently: Gently | None) -> None:
        hooks = Hooks(
            resume=lambda: self.storage.resume(digest),
            reserve=lambda size: self.storage.reserve(digest, size),
            publish=lambda blob, source: self._publish(blob, source, located.audience),
            received=lambda source, size_bytes: self._received_of(digest, source, size_bytes),
            source_failed=lambda source, error: self._source_failed(digest, source, error),
            hedge=self._hedge,
            slow=lambda source: self._metrics.slow_sources.labels(source).inc(),
        )
        selection = Selection(digest, located.origins)
        download = Download(digest, selection, hooks, self._linger_s, located.size, gently)
        predecessor = self._downloads.get(digest)
        self._downloads[digest] = download
        download.task = self._background.start(
            self._run(download, predecessor, start), name=f"download {digest.short}"
        )

    async def _run(self, download: Download, predecessor: Download | None, start: int) -> None:
        if predecessor is not None and predecessor.task is not None:
            await asyncio.wait({predecessor.task})
        self._metrics.downloads.inc()
        claim: Claim | None = None
        try:
            claim = await self._claim(download)
            if claim is not None:
                await download.run(start)
        finally:
            self._metrics.downloads.dec()
            if claim is not None:
                claim.release()
            if self._downloads.get(download.digest) is download:
                del self._downloads[download.digest]
            self._ended.set()
            self._ended = asyncio.Event()

    async def _claim(self, download: Download) -> Claim | None:
        """The right to download for this node; without it the readers are told who has it."""
        try:
            claim = await self._claims.take(download.digest)
        except CacheUnusable as error:
            download.refuse(error)
            return None
        if isinstance(claim, str):
            download.refuse(ClaimedElsewhere(download.digest, claim))
            return None
        return claim

    async def _publish(self, blob: GrowingBlob, source: str, audience: Audience) -> None:
        await self.storage.publish(blob, source)
        _log.info("blob_stored", digest=blob.digest, size_bytes=blob.size, source=source)
        self._neighbours.stored(blob.digest, source, audience)
        for stored in self._told:
            stored(blob.digest, blob.size)

    def received_from(self, digest: Digest) -> Mapping[str, int]:
        """The bytes of a blob that this process downloaded lately, by source."""
        return self._tallies.get(digest) or {}

    def _received_of(self, digest: Digest, source: str, size_bytes: int) -> None:
        tally = self._tallies.get(digest)
        if tally is None:
            tally = Counter[str]()
            self._tallies.put(digest, tally, 1)
        tally[source] += size_bytes
        self._received(source, size_bytes)

    def _received(self, source: str, size_bytes: int) -> None:
        self._metrics.received_bytes.labels(source).inc(size_bytes)
        self._paces.of(source).received(size_bytes)

    def _source_failed(self, digest: Digest, source: str, error: OciError) -> None:
        if not isinstance(error, BlobNotFound):
            _log.warning("source_failed", source=source, reason=str(error))
            self._metrics.source_failures.labels(source).inc()
        if isinstance(error, IntegrityError):
            self._neighbours.lied(digest, source)

    def view(self, locate: Callable[[Digest], Awaitable[Located]]) -> BlobSource:
        """This cache as a plain source of blobs, for those who read configs and layers."""
        return _View(self, locate)


@dataclass(frozen=True, slots=True)
class _ComingBlob:
    download: Download
    blob: GrowingBlob
    descriptor: int
    metrics: FacadeMetrics
    served_from: str = "download"

    @property
    def size(self) -> int:
        return self.blob.size

    async def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        at = wanted.start
        while at < wanted.stop:
            with self.metrics.readers_waiting.track_inprogress():
                until = min(wanted.stop, await self.download.wait_readable(self.blob, at, wanted.stop))
            yield FileSpan(self.descriptor, at, until)
            at = until


@dataclass(frozen=True, slots=True)
class _View:
    cache: ReadThrough
    locate: Callable[[Digest], Awaitable[Located]]

    @property
    def name(self) -> str:
        return "cache"

    async def stat(self, digest: Digest) -> Descriptor:
        size = await self.cache.stat(digest, lambda: self.locate(digest))
        return Descriptor(BLOB_MEDIA_TYPE, digest, size)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        async with self.cache.open(digest, lambda: self.locate(digest)) as blob:
            yield _Reader(blob, (byte_range or ByteRange()).resolve(blob.size))


@dataclass(frozen=True, slots=True)
class _Reader:
    blob: OpenBlob
    content_range: ContentRange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return read_parts(self.blob, self.content_range)
