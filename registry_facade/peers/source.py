"""A blob from the peers: its keeper, or the next that answers; from the others only what they have.

1. Peers before this facade in the digest's ranking are asked in turn: they give the blob, or fetch it.
2. Where this facade is the keeper, the others are asked at once whether they have it.
3. Otherwise BlobNotFound: it is this facade's turn to ask the upstream.

A peer that fails is left alone for `PAUSE_S`; one that lied, for `BAN_S`.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

import structlog

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobReader
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, SourceUnavailable
from ocikit.ranges import ByteRange
from registry_facade.peers.client import NAME, PeerClient
from registry_facade.peers.membership import Membership
from registry_facade.peers.metrics import PeerMetrics
from registry_facade.peers.ring import ranked
from registry_facade.sources.chain import Origin
from registry_facade.sources.neighbours import Neighbour, Place
from servicekit.clock import Clock, SystemClock

PAUSE_S = 5.0
BAN_S = 300.0
ASK_ALL_S = 0.5
"""How long the others may take to say whether they have a blob: it is spent on every cold one."""
_MAX_ASKED = 16
_REMEMBERED = 10_000

_log = structlog.get_logger(__name__)


class Peers:
    """The neighbours that are facades. One event loop."""

    def __init__(
        self,
        membership: Membership,
        client: PeerClient,
        metrics: PeerMetrics,
        *,
        clock: Clock = SystemClock(),
    ) -> None:
        self.client = client
        self._membership = membership
        self._metrics = metrics
        self._clock = clock
        self._left_alone: dict[str, float] = {}
        self._gave: OrderedDict[Digest, str] = OrderedDict()

    @property
    def name(self) -> str:
        return NAME

    @property
    def relays(self) -> bool:
        return False

    @property
    def is_public(self) -> bool:
        return False

    def origin(self, place: Place | None) -> Origin:
        """Not hedged: a keeper that lets one wait is itself waiting for the upstream."""
        return Origin(PeerSource(self, place), trusted=False)

    def stored(self, digest: Digest, source: str) -> None:
        """Peers ask; they are not told."""

    async def described(self, layers: Sequence[Descriptor]) -> None:
        """Nothing that peers are asked by."""

    def lied(self, digest: Digest) -> None:
        peer = self._gave.get(digest)
        if peer is not None:
            self._left_alone[peer] = self._clock.monotonic() + BAN_S
            self._metrics.failures.labels("lied").inc()
            _log.warning("peer_lied", peer=peer, digest=digest)

    def failed(self, peer: str, error: SourceUnavailable) -> None:
        until_s = self._clock.monotonic() + PAUSE_S
        self._left_alone[peer] = max(until_s, self._left_alone.get(peer, 0.0))
        self._metrics.failures.labels("unavailable").inc()
        _log.warning("peer_failed", peer=peer, reason=str(error))

    def gave(self, digest: Digest, peer: str) -> None:
        self._gave[digest] = peer
        while len(self._gave) > _REMEMBERED:
            self._gave.popitem(last=False)

    async def candidates(self, digest: Digest) -> tuple[list[str], list[str]]:
        """(peers that may be asked to fetch, peers that may have it), without those left alone."""
        now_s = self._clock.monotonic()
        order = ranked(digest, await self._membership.members())
        usable = [peer for peer in order if self._left_alone.get(peer, 0.0) <= now_s]
        at = usable.index(self._membership.own)
        return usable[:at], usable[at + 1 :][:_MAX_ASKED]


@dataclass(frozen=True, slots=True)
class PeerSource:
    """``place`` is where a keeper may fetch the blob; without one only what lies there is given."""

    peers: Peers
    place: Place | None

    @property
    def name(self) -> str:
        return NAME

    async def stat(self, digest: Digest) -> Descriptor:
        keepers, others = await self._asked(digest)
        for peer in keepers:
            try:
                size = await self.peers.client.size(peer, digest, self.place)
                return Descriptor(BLOB_MEDIA_TYPE, digest, size)
            except SourceUnavailable as error:
                self.peers.failed(peer, error)
        _, size = await self._holder(digest, others)
        return Descriptor(BLOB_MEDIA_TYPE, digest, size)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        keepers, others = await self._asked(digest)
        async with contextlib.AsyncExitStack() as stack:
            for peer in keepers:
                try:
                    reader = await self._enter(stack, peer, digest, byte_range, self.place)
                except SourceUnavailable as error:
                    self.peers.failed(peer, error)
                else:
                    break
            else:
                holder, _ = await self._holder(digest, others)
                reader = await self._enter(stack, holder, digest, byte_range, None)
            yield reader

    async def _asked(self, digest: Digest) -> tuple[list[str], list[str]]:
        """Without a place there is nothing to fetch: then all are merely asked what they have."""
        keepers, others = await self.peers.candidates(digest)
        return (keepers, others) if self.place is not None else ([], [*keepers, *others])

    async def _enter(
        self,
        stack: contextlib.AsyncExitStack,
        peer: str,
        digest: Digest,
        byte_range: ByteRange | None,
        place: Place | None,
    ) -> BlobReader:
        reader = await stack.enter_async_context(self.peers.client.open(peer, digest, byte_range, place))
        self.peers.gave(digest, peer)
        return reader

    async def _holder(self, digest: Digest, peers: Collection[str]) -> tuple[str, int]:
        """The first to say that it has the blob, and the size. Raises BlobNotFound when nobody does soon."""
        asked = {asyncio.create_task(self._has(peer, digest)) for peer in peers}
        try:
            async with asyncio.timeout(ASK_ALL_S):
                for answer in asyncio.as_completed(asked):
                    found = await answer
                    if found is not None:
                        return found
        except TimeoutError:
            _log.debug("peers_slow", digest=digest)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise BlobNotFound(digest, NAME)

    async def _has(self, peer: str, digest: Digest) -> tuple[str, int] | None:
        try:
            return peer, await self.peers.client.size(peer, digest, None)
        except BlobNotFound:
            return None
        except SourceUnavailable as error:
            self.peers.failed(peer, error)
            return None


def _conforms(peers: Peers) -> Neighbour:
    return peers
