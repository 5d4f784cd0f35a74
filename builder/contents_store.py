"""Tables of contents of layers: cached here, kept beside the image, or made from the layer itself."""

import contextlib
from tempfile import TemporaryFile

from builder.compression import decompressed
from builder.contents import Contents, ContentsCache, read_contents, stacked
from builder.errors import InvalidLayer
from builder.names import contents_tag
from ocikit import media_types
from ocikit.blobs import read_blob
from ocikit.compose import Layer, paired_layers
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import NotFound
from ocikit.manifest import Manifest, RawManifest
from ocikit.repository import Image, Repository
from servicekit.single_flight import SingleFlight
from servicekit.threads import in_thread

ARTIFACT_TYPE = "application/vnd.lapstrake.contents.v1"
_MEDIA_TYPE = f"{ARTIFACT_TYPE}+zstd"
_DIFF_ID = "dev.lapstrake.layer.diff-id"
_EMPTY = b"{}"
_MAX_BYTES = 256 << 20
_READ_BYTES = 1 << 20


class ContentsStore:
    """Of one repository. Safe for concurrent use on one event loop."""

    def __init__(self, repository: Repository, cache: ContentsCache) -> None:
        self.cache = cache
        self._repository = repository
        self._known: dict[Digest, Contents] = {}
        self._flights: SingleFlight[Digest, Contents] = SingleFlight()

    async def of(self, image: Image, tag: str) -> Contents:
        """Of all layers of ``image``, which is stored under ``tag``. Raises InvalidLayer."""
        layers = paired_layers(image.manifest, image.config)
        return stacked([await self._of_layer(layer, tag) for layer in layers])

    async def _of_layer(self, layer: Layer, tag: str) -> Contents:
        known = self._known.get(layer.diff_id)
        if known is None:
            known = await self._flights.do(layer.diff_id, lambda: self._load(layer, tag))
            self._known[layer.diff_id] = known
        return known

    async def _load(self, layer: Layer, tag: str) -> Contents:
        found = await in_thread(self.cache.find, layer.diff_id)
        if found is None and (data := await self._fetch(layer.diff_id, tag)) is not None:
            with contextlib.suppress(InvalidLayer):  # another version of this program wrote it
                found = await in_thread(Contents.parse, data, layer.diff_id.short)
                await in_thread(self.cache.put, layer.diff_id, data)
        if found is None:
            found = await self._make(layer)
            await in_thread(self.cache.put, layer.diff_id, found.dump())
        return found

    async def _fetch(self, diff_id: Digest, tag: str) -> bytes | None:
        try:
            raw = await self._repository.manifest(contents_tag(tag))
            for descriptor in Manifest.parse(raw.data, raw.media_type).layers:
                if descriptor.annotations.get(_DIFF_ID) == diff_id:
                    return await read_blob(self._repository.blobs, descriptor, limit_bytes=_MAX_BYTES)
        except NotFound:
            pass
        return None

    async def _make(self, layer: Layer) -> Contents:
        kind = media_types.layer_compression(layer.descriptor.media_type)
        with TemporaryFile() as spool:
            async with self._repository.blobs.open(layer.descriptor.digest) as reader:
                async for data in reader:
                    await in_thread(spool.write, data)
            spool.seek(0)
            pieces = decompressed(iter(lambda: spool.read(_READ_BYTES), b""), kind, layer.diff_id.short)
            return await in_thread(read_contents, pieces, layer.diff_id.short)

    async def publish(self, image: Image, tag: str) -> None:
        """Stores what the cache has of ``image``'s layers, as an artifact that refers to it."""
        layers = paired_layers(image.manifest, image.config)
        if not layers:
            return
        described: list[Descriptor] = []
        for layer in layers:
            data = (await self._of_layer(layer, tag)).dump()
            described.append(
                Descriptor(_MEDIA_TYPE, await self._put(data), len(data), {_DIFF_ID: layer.diff_id})
            )
        manifest = Manifest(
            Descriptor(media_types.OCI_EMPTY, await self._put(_EMPTY), len(_EMPTY)),
            tuple(described),
            subject=image.descriptor,
            artifact_type=ARTIFACT_TYPE,
        )
        raw = RawManifest.of(media_types.OCI_MANIFEST, manifest.dump())
        await self._repository.put_manifest(raw, contents_tag(tag))

    async def _put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        async with self._repository.blobs.ingest(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()
        return digest
