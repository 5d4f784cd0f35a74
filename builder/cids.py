"""The IPFS name (CID) of each layer, written into the manifest, so that a cluster needs no shared index.

A CID depends on the bytes alone: no IPFS node is asked. A layer is read once, verified; what came of it is
remembered in the state directory.
"""

import asyncio
from pathlib import Path

from builder.parallel import each
from ocikit.cid import ANNOTATION, CidHasher, is_cid
from ocikit.compose import ComposedImage, with_layer_annotations
from ocikit.descriptor import Descriptor
from ocikit.repository import Repository
from ocikit.verify import Verifier
from servicekit.atomic import atomic_write
from servicekit.threads import in_thread

_AT_ONCE = 4


class LayerCids:
    """Safe for concurrent use. ``records`` may be deleted at any time; then layers are read again."""

    def __init__(self, records: Path, repository: Repository) -> None:
        self._records = records
        self._repository = repository
        self._reading = asyncio.Semaphore(_AT_ONCE)

    async def annotated(self, image: ComposedImage) -> ComposedImage:
        """The image with the CID of each layer. Raises what reading a layer raises."""
        layers = {layer.digest: layer for layer in image.layers}
        cids = await each(list(layers.values()), self._cid, jobs=_AT_ONCE)
        return with_layer_annotations(
            image, {digest: {ANNOTATION: cid} for digest, cid in zip(layers, cids, strict=True)}
        )

    async def _cid(self, layer: Descriptor) -> str:
        async with self._reading:
            path = self._records / layer.digest.encoded
            known = await in_thread(_read, path)
            if known is None:
                known = await self._computed(layer)
                await in_thread(atomic_write, path, known.encode())
            return known

    async def _computed(self, layer: Descriptor) -> str:
        hasher, verifier = CidHasher(), Verifier(layer.digest, layer.size, self._repository.title)
        async with self._repository.blobs.open(layer.digest) as reader:
            async for data in reader:
                await asyncio.to_thread(_update, hasher, verifier, data)
        verifier.finish()
        return hasher.cid()


def _update(hasher: CidHasher, verifier: Verifier, data: bytes) -> None:
    hasher.update(data)
    verifier.update(data)


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if is_cid(text) else None
