"""IPFS as a neighbour of the cache: what came from elsewhere is announced, lies are unmapped."""

from dataclasses import dataclass

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.source import IpfsSource
from registry_facade.sources.neighbours import Neighbour, Place
from servicekit.tasks import BackgroundTasks


@dataclass(frozen=True, slots=True)
class IpfsNeighbour:
    """``store`` is this node's cache of blobs, which announcements read."""

    reader: IpfsSource
    announcer: Announcer
    store: BlobSource
    background: BackgroundTasks

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def relays(self) -> bool:
        return True

    def source(self, place: Place | None) -> BlobSource:
        del place
        return self.reader

    def stored(self, digest: Digest, source: str) -> None:
        if source != self.reader.name:
            self.announcer.announce(digest, self.store)

    def lied(self, digest: Digest) -> None:
        _ = self.background.start(self.reader.reject(digest), name=f"reject {digest.short}")


def _conforms(neighbour: IpfsNeighbour) -> Neighbour:
    return neighbour
