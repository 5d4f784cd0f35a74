"""A digest index that also knows what images say of their own layers.

The annotation `ocikit.cid.ANNOTATION` on a layer's descriptor is a hint like any other, of last resort: the
index knows better what was really added. It makes a cluster need no shared index at all.
"""

from collections.abc import Iterable

from ocikit.cid import ANNOTATION, is_cid
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.digest_index.base import DigestIndex


class HintedIndex:
    """``index`` is written to; ``hints`` hold the annotations. Closes both."""

    def __init__(self, index: DigestIndex, hints: DigestIndex) -> None:
        self._index = index
        self._hints = hints

    async def described(self, layers: Iterable[Descriptor]) -> None:
        """Takes note of what a manifest says of its layers. Raises SourceUnavailable."""
        for layer in layers:
            cid = layer.annotations.get(ANNOTATION, "")
            if is_cid(cid) and await self._hints.get(layer.digest) != cid:
                await self._hints.put(layer.digest, cid)

    async def get(self, digest: Digest) -> str | None:
        try:
            found = await self._index.get(digest)
        except SourceUnavailable:
            if (hint := await self._hints.get(digest)) is None:
                raise
            return hint
        return found or await self._hints.get(digest)

    async def put(self, digest: Digest, cid: str) -> None:
        await self._index.put(digest, cid)

    async def forget(self, digest: Digest, cid: str) -> None:
        """A hint stays, for the image still says so: nobody may have added the layer yet."""
        await self._index.forget(digest, cid)

    async def aclose(self) -> None:
        await self._index.aclose()
        await self._hints.aclose()


def _conforms(index: HintedIndex) -> DigestIndex:
    return index
