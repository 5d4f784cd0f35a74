"""Filling one growing blob from its sources, for as long as somebody wants it.

1. The first request tells the size; the file is reserved, readers attach.
2. `planning` decides what to fetch next: what a reader waits for, then the gaps in order.
3. A request that fails ends where it got to; what is missing is asked of the next source, in the same
   file, so that readers notice nothing.
4. The complete file is verified, shown whole to its readers, and published under its final name.

When the last reader leaves, the download goes on for ``linger_s`` and is then given up; what it got is kept.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from ocikit.digest import Digest
from ocikit.errors import DigestMismatch, IntegrityError, OciError, SizeMismatch, SourceUnavailable
from ocikit.ranges import ByteRange
from registry_facade.cache.growing import GrowingBlob
from registry_facade.cache.planning import Demand, Fetch, first_fetch, idle_fetch, next_fetch
from registry_facade.cache.write_behind import WriteBehind
from registry_facade.errors import CacheUnusable, PullFailed
from registry_facade.sources.chain import Origin, Selection
from registry_facade.sources.hedging import Answer, Hedge
from registry_facade.sources.pace import JUDGED_AFTER_S, TRICKLE_BYTES, is_too_slow
from servicekit.backoff import Backoff

MAX_FETCHES = 4
"""Requests at a time for one blob; lazy pullers read in several places at once."""
_BACKOFF = Backoff(first_s=0.1, cap_s=2.0)


class Gently(Protocol):
    """The pace of a download that no client waits for."""

    async def acquire(self, size_bytes: int) -> None:
        """Returns when so many bytes may be taken."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a download tells its surroundings."""

    resume: Callable[[], Awaitable[GrowingBlob | None]]
    """What an earlier download of this blob left, if anything."""
    reserve: Callable[[int], Awaitable[GrowingBlob]]
    """Makes the growing file for a blob of that size. Raises CacheUnusable when there is no room."""
    publish: Callable[[GrowingBlob, str], Awaitable[None]]
    """Puts the verified blob where everybody finds it; gets the name of the source it mainly came from."""
    received: Callable[[str, int], None]
    """Counts bytes by source."""
    source_failed: Callable[[str, OciError], None]
    hedge: Hedge
    slow: Callable[[str], None]
    """Counts sources that were given up for their pace."""


@dataclass(eq=False)
class Download:
    """One blob on its way. `run` it in a task of its own; readers use `attached`. One event loop."""

    digest: Digest
    selection: Selection
    hooks: Hooks
    linger_s: float
    expected_size: int | None = None
    gently: Gently | None = None
    """None from the moment that a client reads: then nothing is held back."""
    _demands: dict[object, Demand] = field(default_factory=dict)
    _fetches: dict[asyncio.Task[None], Fetch] = field(default_factory=dict)
    _bytes_by_source: dict[str, int] = field(default_factory=dict)
    _readers: int = 0
    _has_failed: bool = False
    _blob: GrowingBlob | None = None
    _linger: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sized: asyncio.Future[GrowingBlob] = loop.create_future()
        self._sized.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.task: asyncio.Task[None] | None = None

    # ----- readers -----

    @contextlib.asynccontextmanager
    async def attached(self) -> AsyncIterator[GrowingBlob]:
        """The growing blob, once its size is known. Raises what kept the download from beginning."""
        self._readers += 1
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        try:
            yield await asyncio.shield(self._sized)
        finally:
            self._readers -= 1
            if self._readers == 0 and self.task is not None and not self.task.done():
                loop = asyncio.get_running_loop()
                self._linger = loop.call_later(self.linger_s if self._blob else 0, self._give_up)

    def _give_up(self) -> None:
        """Nobody wants the rest; a blob that is complete is still verified and kept."""
        if self.task is not None and (self._blob is None or not self._blob.is_complete):
            self.task.cancel()

    @property
    def is_open(self) -> bool:
        """Whether new readers may attach; a download about to be given up, or over, takes none."""
        if self._has_failed or self.task is None:
            return False
        return not self.task.done() and not self.task.cancelling()

    async def wait_readable(self, blob: GrowingBlob, at: int, stop: int) -> int:
        """The end of what may be read from ``at`` on; what is missing is fetched first of all."""
        if (until := blob.readable_until(at)) > at:
            return until
        token = object()
        self._demands[token] = Demand(at, stop)
        self._wake.set()
        try:
            return await blob.wait_readable(at)
        finally:
            del self._demands[token]

    # ----- the work -----

    def refuse(self, error: OciError) -> None:
        """Instead of `run`: readers get ``error``."""
        self._fail(error)

    async def run(self, first_at: int = 0) -> None:
        """Until published, failed or cancelled; readers get the error, the caller nothing."""
        keep = True
        try:
            await self._begin(first_at)
            await self._fill_and_verify()
        except IntegrityError as error:
            keep = False
            self._fail(error)
        except OciError as error:
            self._fail(error)
        except BaseException:
            self._fail(PullFailed(self.digest, ["the download was given up"]))
            raise
        finally:
            if self._linger is not None:
                self._linger.cancel()
            await self._stop_fetches()
            if self._blob is not None:
                await self._blob.close(keep=keep)

    def _fail(self, error: OciError) -> None:
        self._has_failed = True
        if not self._sized.done():
            self._sized.set_exception(error)
        if self._blob is not None:
            self._blob.fail(error)

    async def _begin(self, first_at: int) -> None:
        """Asks until one source answers; its answer's body is used, the size is no extra request."""
        self._blob = await self.hooks.resume()
        if self._blob is None and self.expected_size is None:
            self.expected_size = await self.selection.trusted_size()
        if first_at >= (self.expected_size or 0):
            first_at = 0  # an offset may lie beyond an unknown end
        while self._blob is None:
            fetch = first_fetch(first_at, self.expected_size, self.selection.streams)
            self._start(fetch)
            while self._fetches and self._blob is None:
                await self._turn()
        self._sized.set_result(self._blob)

    async def _fill_and_verify(self) -> None:
        blob = self._known_blob()
        while not blob.verified:
            while not blob.is_complete:
                await self._start_what_is_due(blob)
                await self._turn()
            await self._stop_fetches()
            self._judge(blob, await blob.actual_digest())
        await self.hooks.publish(
            blob, max(self._bytes_by_source, key=self._bytes_by_source.__getitem__, default="disk")
        )

    def _judge(self, blob: GrowingBlob, actual: Digest) -> None:
        """Releases a good blob; of a bad one drops what was not trusted. Raises DigestMismatch otherwise."""
        if actual == self.digest:
            blob.release()
            return
        names = sorted(blob.untrusted_sources)
        if not names:  # what an earlier download left may have been damaged since
            names = ["disk"] if blob.was_resumed else sorted(self._bytes_by_source)
        error = DigestMismatch(self.digest, actual, ", ".join(names))
        for name in names:
            self.hooks.source_failed(name, error)
        if not blob.untrusted_sources:
            raise error
        for name in names:
            self.selection.bar(name, error)
            self._bytes_by_source.pop(name, None)
        blob.drop_untrusted()

    async def _turn(self) -> None:
        """Waits until a fetch ends or a reader wants something; ended fetches are cleared away."""
        await self._wake.wait()
        self._wake.clear()
        for task in [task for task in self._fetches if task.done()]:
            del self._fetches[task]
            task.result()

    async def _start_what_is_due(self, blob: GrowingBlob) -> None:
        while True:
            demands = list(self._demands.values())
            running = list(self._fetches.values())
            wanted = next_fetch(blob.present, running, demands, blob.size, self.selection.streams)
            if wanted is None:
                return
            if len(self._fetches) >= MAX_FETCHES:
                idle = idle_fetch(list(self._fetches.values()), demands)
                if idle is not None:
                    idle.stop = idle.at
                return
            for fetch in running:
                if fetch.at <= wanted.at < fetch.stop:
                    fetch.stop = wanted.at
            self._start(wanted)

    def _start(self, fetch: Fetch) -> None:
        task = asyncio.create_task(self._fetch(fetch), name=f"fetch {self.digest.short}")
        self._fetches[task] = fetch
        task.add_done_callback(lambda _: self._wake.set())

    async def _stop_fetches(self) -> None:
        for task in self._fetches:
            task.cancel()
        await asyncio.gather(*self._fetches, return_exceptions=True)
        self._fetches.clear()

    async def _fetch(self, fetch: Fetch) -> None:
        """One request; its failure is the selection's business. Raises when no source is left to ask."""
        if (failures := self.selection.stalled) > 0:
            await asyncio.sleep(_BACKOFF.delay_s(failures - 1))
        size = self._blob.size if self._blob is not None else None
        stop = None if size is None or fetch.stop >= size else fetch.stop
        asked = ByteRange(fetch.at, stop) if fetch.at or stop is not None else None
        opening = self.hooks.hedge.open(
            self.selection, self.digest, asked, self._origin_failed, is_urgent=self.gently is None
        )
        async with opening as answer:
            if answer is None:
                return
            try:
                await self._receive(answer, fetch)
            except CacheUnusable:
                raise
            except OciError as error:
                self._origin_failed(answer.origin, error)

    async def _receive(self, answer: Answer, fetch: Fetch) -> None:
        origin = answer.origin
        blob = await self._blob_of(answer.content_range.size, origin)
        fetch.stop = min(fetch.stop, blob.size)
        if origin.streams > 1:  # the size may be news
            fetch.stop = min(fetch.stop, first_fetch(fetch.at, fetch.stop, origin.streams).stop)
        self._wake.set()
        async with WriteBehind(blob, fetch, origin.source.name, trusted=origin.trusted) as writer:
            await self._pump(answer, writer, fetch)

    async def _pump(self, answer: Answer, writer: WriteBehind, fetch: Fetch) -> None:
        """From the source into the file, up to ``fetch.stop``, which may come nearer meanwhile."""
        name, at = answer.origin.source.name, fetch.at
        loop = asyncio.get_running_loop()
        judged_s, judged_at = loop.time() + JUDGED_AFTER_S, at
        is_last_resort = self.selection.is_slow(answer.origin)
        async for data in answer.pieces:
            self.hooks.received(name, len(data))
            self._bytes_by_source[name] = self._bytes_by_source.get(name, 0) + len(data)
            self.selection.progressed(answer.origin)
            if self.gently is not None:
                await self.gently.acquire(len(data))
            await writer.put(data[: max(0, fetch.stop - at)])
            at += len(data)
            if at >= fetch.stop and at < answer.content_range.stop:
                return
            if loop.time() >= judged_s and self.gently is None and not is_last_resort:
                self._judge_pace(answer.origin, is_trickling=at - judged_at < TRICKLE_BYTES)
                judged_s, judged_at = loop.time() + JUDGED_AFTER_S, at

    def _judge_pace(self, origin: Origin, *, is_trickling: bool) -> None:
        """Raises SourceUnavailable for one that is slower than the source behind it, on all its streams.

        One that is not hedged may itself wait for that source, and must merely not trickle.
        """
        if not self.selection.is_slow(origin):
            farther, paces = self.selection.instead_of(origin), self.hooks.hedge.paces
            if farther is None:
                return
            near, far = paces.of(origin.source.name), paces.of(farther.source.name)
            if not (is_too_slow(near, far) if origin.hedged else is_trickling):
                return
            self.selection.was_slow(origin)
            self.hooks.slow(origin.source.name)
        raise SourceUnavailable(origin.source.name, "it is slower than the source behind it")

    def _origin_failed(self, origin: Origin, error: OciError) -> None:
        self.selection.failed(origin, error)
        self.hooks.source_failed(origin.source.name, error)

    async def _blob_of(self, size: int, origin: Origin) -> GrowingBlob:
        """The growing blob, made at the first answer. Raises SizeMismatch for an answer that disagrees."""
        expected = self._blob.size if self._blob is not None else self.expected_size
        if expected is not None and size != expected:
            raise SizeMismatch(self.digest, expected, size, origin.source.name)
        if self._blob is None:
            self._blob = await self.hooks.reserve(size)
        return self._blob

    def _known_blob(self) -> GrowingBlob:
        if self._blob is None:
            raise RuntimeError("a download has no size before it began")
        return self._blob
