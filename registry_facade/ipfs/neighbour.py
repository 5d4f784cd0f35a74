"""IPFS as a neighbour of the cache: what came from elsewhere is announced, lies are unmapped."""

from dataclasses import dataclass

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.source import IpfsSource
from registry_facade.sources.neighbours import Neighbour
from servicekit.tasks import BackgroundTasks


@dataclass(frozen=True, slots=True)
class IpfsNeighbour:
    """``store`` is this node's cache of blobs, which announcements read."""

    source: IpfsSource
    announcer: Announcer
    store: BlobSource
    background: BackgroundTasks

    def stored(self, digest: Digest, source: str) -> None:
        if source != self.source.name:
            self.announcer.announce(digest, self.store)

    def lied(self, digest: Digest) -> None:
        _ = self.background.start(self.source.reject(digest), name=f"reject {digest.short}")


def _conforms(neighbour: IpfsNeighbour) -> Neighbour:
    return neighbour
