"""IPFS as a neighbour of the cache: what came from elsewhere is announced, lies are unmapped."""

from dataclasses import dataclass

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from registry_facade.breaker import Breaker, Guarded
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.source import IpfsSource
from registry_facade.sources.chain import Origin
from registry_facade.sources.neighbours import Neighbour, Place
from servicekit.tasks import BackgroundTasks

STREAMS = 3
"""Ranges of a large layer that are read at a time; see docs/ipfs.md for what it gains."""


@dataclass(frozen=True, slots=True)
class IpfsNeighbour:
    """``store`` is this node's cache of blobs, which announcements read."""

    reader: IpfsSource
    announcer: Announcer
    store: BlobSource
    background: BackgroundTasks
    breaker: Breaker

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def relays(self) -> bool:
        return True

    def origin(self, place: Place | None) -> Origin:
        del place
        return Origin(Guarded(self.reader, self.breaker), trusted=False, hedged=True, streams=STREAMS)

    def stored(self, digest: Digest, source: str) -> None:
        if source != self.reader.name:
            self.announcer.announce(digest, self.store)

    def lied(self, digest: Digest) -> None:
        _ = self.background.start(self.reader.reject(digest), name=f"reject {digest.short}")


def _conforms(neighbour: IpfsNeighbour) -> Neighbour:
    return neighbour
