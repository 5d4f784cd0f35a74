"""A digest index in memory."""

from ocikit.cid import is_cid
from ocikit.digest import Digest
from registry_facade.digest_index.base import DigestIndex


class MemoryIndex:
    """``cids`` may be filled with anything, as a hostile writer would."""

    def __init__(self) -> None:
        self.cids: dict[str, str] = {}

    async def get(self, digest: Digest) -> str | None:
        cid = self.cids.get(digest, "")
        return cid if is_cid(cid) else None

    async def put(self, digest: Digest, cid: str) -> None:
        self.cids[digest] = cid

    async def forget(self, digest: Digest, cid: str) -> None:
        if self.cids.get(digest) == cid:
            del self.cids[digest]

    async def aclose(self) -> None:
        """Nothing is held."""


def _conforms(index: MemoryIndex) -> DigestIndex:
    return index
