"""Blobs out of IPFS: digest -> CID by a hint, bytes by the CID, believed by nobody until verified.

The source tells three things apart. No hint, or a hint that proved wrong: BlobNotFound. A node that does
not run: SourceUnavailable. A CID that nobody has (the node runs, but finds no block in time): the mapping
goes, and the digest is not looked for again for `SHUN_S`. Whoever verifies tells `reject`.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.cache.memory import MemoryCache
from registry_facade.digest_index.base import DigestIndex
from registry_facade.ipfs.content import Content, ContentReader, Refused, Silent
from registry_facade.ipfs.kubo import NAME
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.sources.neighbours import as_promised
from servicekit.clock import Clock, SystemClock

SHUN_S = 300.0
"""How long a digest whose CID failed or lied is not looked for."""
_SHUNNED_MAX = 10_000
_SIZES_MAX = 10_000

_log = structlog.get_logger(__name__)


class IpfsSource:
    """A BlobSource over one node or gateway. Safe for concurrent use; it and the index are their owner's.

    ``unmaps``: whether its word that nobody has a CID, or that its bytes are wrong, is a reason to remove
    the mapping for all. A gateway may be the one who is wrong: with it the digest is only shunned here.
    """

    def __init__(
        self,
        content: ContentReader,
        index: DigestIndex,
        metrics: IpfsMetrics,
        *,
        name: str = NAME,
        unmaps: bool = True,
        clock: Clock = SystemClock(),
    ) -> None:
        self._content = content
        self._index = index
        self._metrics = metrics
        self._name = name
        self._unmaps = unmaps
        self._clock = clock
        self._shunned: OrderedDict[Digest, float] = OrderedDict()
        self._sizes: MemoryCache[str, int] = MemoryCache(_SIZES_MAX)

    @property
    def name(self) -> str:
        return self._name

    async def stat(self, digest: Digest) -> Descriptor:
        cid = await self._cid(digest)
        async with self._judged(digest, cid):
            return Descriptor(BLOB_MEDIA_TYPE, digest, await self._size(cid))

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        cid = await self._cid(digest)
        async with contextlib.AsyncExitStack() as stack:
            async with self._judged(digest, cid):
                reader = await self._start(cid, byte_range, stack)
            yield reader

    async def _start(
        self, cid: str, byte_range: ByteRange | None, stack: contextlib.AsyncExitStack
    ) -> BlobReader:
        if byte_range is None:
            content = await stack.enter_async_context(self._content.cat(cid))
            self._sizes.put(cid, content.length, 1)
            return _Reader(ContentRange(0, content.length, content.length), content, self._name)
        wanted = byte_range.resolve(await self._size(cid))
        content = await stack.enter_async_context(self._content.cat(cid, wanted.start, wanted.length))
        return _Reader(wanted, content, self._name)

    async def _size(self, cid: str) -> int:
        """A CID's size never changes; a large layer is read in many ranges."""
        if (size := self._sizes.get(cid)) is None:
            size = await self._content.size(cid)
            self._sizes.put(cid, size, 1)
        return size

    async def reject(self, digest: Digest) -> None:
        """Its bytes were not the digest's: the mapping goes and is shunned. Never raises."""
        with contextlib.suppress(SourceUnavailable):
            cid = await self._index.get(digest)
            await self._unmap(digest, cid or "", "lied")

    async def _cid(self, digest: Digest) -> str:
        until_s = self._shunned.get(digest)
        if until_s is not None and self._clock.monotonic() < until_s:
            raise BlobNotFound(digest, self._name)
        self._shunned.pop(digest, None)
        cid = await self._index.get(digest)
        if cid is None:
            raise BlobNotFound(digest, self._name)
        return cid

    @contextlib.asynccontextmanager
    async def _judged(self, digest: Digest, cid: str) -> AsyncIterator[None]:
        try:
            yield
        except Silent as error:
            if await self._content.is_alive():
                await self._unmap(digest, cid, "absent")
                raise BlobNotFound(digest, self._name) from error
            raise
        except Refused as error:
            await self._unmap(digest, cid, "refused")
            raise BlobNotFound(digest, self._name) from error

    async def _unmap(self, digest: Digest, cid: str, reason: str) -> None:
        self._shunned[digest] = self._clock.monotonic() + SHUN_S
        while len(self._shunned) > _SHUNNED_MAX:
            self._shunned.popitem(last=False)
        self._metrics.unmapped.labels(reason).inc()
        _log.warning("cid_given_up", source=self._name, digest=digest, cid=cid, reason=reason)
        if self._unmaps:
            with contextlib.suppress(SourceUnavailable):
                await self._index.forget(digest, cid)


@dataclass(frozen=True, slots=True)
class _Reader:
    content_range: ContentRange
    content: Content
    name: str

    def __aiter__(self) -> AsyncIterator[bytes]:
        return as_promised(self.content.pieces, self.content_range.length, self.name)


def _conforms(source: IpfsSource) -> BlobSource:
    return source
