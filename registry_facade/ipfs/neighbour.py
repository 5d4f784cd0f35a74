"""IPFS as a neighbour of the cache: what came from elsewhere is announced, lies are unmapped."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import structlog

from ocikit.blobs import BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from ocikit.ranges import ByteRange
from registry_facade.breaker import Breaker, Guarded
from registry_facade.digest_index.hinted import HintedIndex
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.exposure import Exposure
from registry_facade.ipfs.kubo import NAME
from registry_facade.ipfs.source import IpfsSource
from registry_facade.sources.chain import Origin
from registry_facade.sources.neighbours import Neighbour, Place
from servicekit.tasks import BackgroundTasks

STREAMS = 3
"""Ranges of a large layer that a gateway is asked for at a time. A node reads ahead by itself, and may lose
a block where a range ends: docs/decisions/0024-chunks-of-1-mib.md."""
_NEAR = frozenset({"ipfs", "gateway", "peer"})
"""Whoever downloaded from the upstream announces; a layer is not added again by all who got it from there."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IpfsNeighbour:
    """A Kubo node. ``store`` is this facade's cache of blobs, which announcements read."""

    reader: IpfsSource
    announcer: Announcer
    store: BlobSource
    background: BackgroundTasks
    breaker: Breaker
    index: HintedIndex
    exposure: Exposure

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def relays(self) -> bool:
        return True

    @property
    def is_public(self) -> bool:
        return self.exposure.is_public

    def origin(self, place: Place | None) -> Origin:
        del place
        source = self.reader if self.exposure.is_known else _Unasked()
        return Origin(Guarded(source, self.breaker), trusted=False, hedged=True)

    def stored(self, digest: Digest, source: str) -> None:
        if source not in _NEAR and self.exposure.is_known:
            self.announcer.announce(digest, self.store)

    async def described(self, layers: Sequence[Descriptor]) -> None:
        await _keep_hints(self.index, layers)

    def lied(self, digest: Digest) -> None:
        _ = self.background.start(self.reader.reject(digest), name=f"reject {digest.short}")


class _Unasked:
    """A node that has not yet said whether it is on the public network: not to be asked for anything."""

    name = NAME

    async def stat(self, digest: Digest) -> Descriptor:
        raise SourceUnavailable(NAME, f"it does not answer; not asked for {digest.short}")

    def open(
        self, digest: Digest, byte_range: ByteRange | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        del byte_range
        raise SourceUnavailable(NAME, f"it does not answer; not asked for {digest.short}")


@dataclass(frozen=True, slots=True)
class GatewayNeighbour:
    """A read-only gateway: asked for layers that the world may know of, and given nothing."""

    reader: IpfsSource
    background: BackgroundTasks
    breaker: Breaker
    index: HintedIndex

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def relays(self) -> bool:
        return True

    @property
    def is_public(self) -> bool:
        return True

    def origin(self, place: Place | None) -> Origin:
        del place
        return Origin(Guarded(self.reader, self.breaker), trusted=False, hedged=True, streams=STREAMS)

    def stored(self, digest: Digest, source: str) -> None:
        """It only gives."""

    async def described(self, layers: Sequence[Descriptor]) -> None:
        await _keep_hints(self.index, layers)

    def lied(self, digest: Digest) -> None:
        _ = self.background.start(self.reader.reject(digest), name=f"reject {digest.short}")


async def _keep_hints(index: HintedIndex, layers: Sequence[Descriptor]) -> None:
    try:
        await index.described(layers)
    except SourceUnavailable as error:
        _log.info("annotations_not_kept", reason=str(error))


def _conforms(node: IpfsNeighbour, gateway: GatewayNeighbour) -> Sequence[Neighbour]:
    return node, gateway
