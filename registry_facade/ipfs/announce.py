"""Giving verified blobs to IPFS: add, compare the CID, and only then say so.

The blob is read from this node's own store, so nothing is downloaded twice. The node's answer is compared
with the CID computed from the bytes on the way: what is announced is right, whatever the node did.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from ocikit.blobs import BlobSource
from ocikit.cid import CidHasher
from ocikit.digest import Digest
from ocikit.errors import OciError, SourceUnavailable
from ocikit.verify import Verifier
from registry_facade.digest_index.base import DigestIndex
from registry_facade.ipfs.kubo import NAME, Kubo
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.pins import Pin
from servicekit.clock import Clock, SystemClock
from servicekit.tasks import BackgroundTasks

MAX_AT_ONCE = 2
MAX_WAITING = 256
"""Beyond it blobs are not announced: a node that cannot keep up costs coverage, not memory."""

Room = Callable[[int], Awaitable[bool]]
"""Whether that many bytes may be added; may make room for them. Raises SourceUnavailable."""

_log = structlog.get_logger(__name__)


class Announcer:
    """Adds in the background, a few at a time. One event loop; everything given is its owner's."""

    def __init__(
        self,
        kubo: Kubo,
        index: DigestIndex,
        metrics: IpfsMetrics,
        background: BackgroundTasks,
        *,
        room: Room,
        clock: Clock = SystemClock(),
    ) -> None:
        self._room = room
        self._clock = clock
        self._kubo = kubo
        self._index = index
        self._metrics = metrics
        self._background = background
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting: set[Digest] = set()

    def announce(self, digest: Digest, store: BlobSource) -> None:
        """Returns at once. ``store`` has the blob, or will say that it has not any more."""
        if digest in self._waiting:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._metrics.announced.labels("dropped").inc()
            return
        self._waiting.add(digest)
        self._metrics.waiting.set(len(self._waiting))
        _ = self._background.start(self._announce(digest, store), name=f"announce {digest.short}")

    async def _announce(self, digest: Digest, store: BlobSource) -> None:
        try:
            async with self._slots:
                outcome = await self._outcome(digest, store)
            self._metrics.announced.labels(outcome).inc()
        finally:
            self._waiting.discard(digest)
            self._metrics.waiting.set(len(self._waiting))

    async def _outcome(self, digest: Digest, store: BlobSource) -> str:
        try:
            size = (await store.stat(digest)).size
            if not await self._room(size):
                _log.warning("no_room_in_ipfs", digest=digest, size_bytes=size)
                return "no_room"
            cid = await self.add(digest, store, size)
            await self._index.put(digest, cid)
        except OciError as error:
            _log.warning("announce_failed", digest=digest, reason=str(error))
            return "failed"
        _log.info("announced", digest=digest, cid=cid)
        return "added"

    async def add(self, digest: Digest, store: BlobSource, size: int) -> str:
        """Adds and pins one blob; returns its CID. Raises OciErrors, with nothing announced."""
        hasher = CidHasher()

        async def pieces() -> AsyncIterator[bytes]:
            async with store.open(digest) as reader:
                verifier = Verifier(digest, reader.content_range.size, store.name)
                async for data in reader:
                    await asyncio.to_thread(_hash, data, verifier, hasher)
                    yield data
                verifier.finish()

        pin = Pin("", digest, size, self._clock.time())
        told = await self._kubo.add(pieces(), pin_name=pin.name)
        expected = hasher.cid()
        if told != expected:
            with contextlib.suppress(SourceUnavailable):
                await self._kubo.unpin(told)
            raise SourceUnavailable(NAME, f"it added {digest} as {told}, which should be {expected}")
        self._metrics.announced_bytes.inc(size)
        return expected


def _hash(data: bytes, verifier: Verifier, hasher: CidHasher) -> None:
    verifier.update(data)
    hasher.update(data)
