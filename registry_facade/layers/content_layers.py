"""The layers of an image spec that are no images: each as a blob that is in the cache, or can be found.

What took a download or a pass over its bytes to learn is remembered over restarts; what it makes is the same
every time.
"""

import asyncio
import os
import sqlite3
from pathlib import Path

import structlog

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.ranges import ByteRange
from registry_facade.cache.storage import Storage
from registry_facade.errors import LayerUnavailable
from registry_facade.image_spec import FileLayer, InlineLayer, InlineTar, SnapshotLayer, TarLayer
from registry_facade.layers.content import look_into, scratch_file
from registry_facade.layers.made import MadeLayers
from registry_facade.layers.snapshots import SnapshotStore
from registry_facade.layers.web import UrlBlob, UrlPlaces
from registry_facade.open_blob import read_parts
from registry_facade.sources.chain import Origin
from registry_facade.sources.read_through import Located, ReadThrough
from servicekit.single_flight import SingleFlight
from servicekit.sqlite import Database

_log = structlog.get_logger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS layers (
    key TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL,
    diff_id TEXT NOT NULL) WITHOUT ROWID;
"""
ContentLayer = FileLayer | InlineLayer | TarLayer | InlineTar | SnapshotLayer


def layer_memory(path: Path) -> Database:
    return Database(path, _SCHEMA)


class ContentLayers:
    """Safe for concurrent use on one event loop. ``memory`` is its owner's to close.

    ``lazy``: one of `made.LAZY`, what layers that are made of files are; empty for plain tars.
    """

    def __init__(
        self,
        storage: Storage,
        cache: ReadThrough,
        places: UrlPlaces,
        snapshots: SnapshotStore,
        memory: Database,
        *,
        lazy: str = "",
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._places = places
        self._snapshots = snapshots
        self._memory = memory
        self._made = MadeLayers(storage, lazy=lazy)
        self._flights: SingleFlight[str, Layer] = SingleFlight()

    async def layer(self, spec: ContentLayer) -> Layer:
        """Raises LayerUnavailable, CacheUnusable, or what a source said."""
        match spec:
            case TarLayer():
                self._places.put(spec.digest, spec.url)
                return await self._flights.do(f"tar:{spec}", lambda: self._tar(spec))
            case InlineTar():
                digest = Digest.of(spec.data)
                await self._storage.put(digest, spec.data, "composed")
                return Layer(Descriptor(media_types.OCI_LAYER, digest, len(spec.data)), digest)
            case SnapshotLayer():
                return await self._snapshot(spec)
            case _:
                return await self._made.layer(spec)

    # ----- a tar under a URL -----

    async def _tar(self, spec: TarLayer) -> Layer:
        known = await self._remembered(f"tar:{spec.digest}")
        if known is not None and spec.diff_id in {None, known.diff_id}:
            return known
        try:
            return await self._learn(spec)
        except LayerUnavailable:
            raise
        except (OciError, OSError) as error:
            raise LayerUnavailable(f"tar {spec.digest}", str(error)) from error

    async def _learn(self, spec: TarLayer) -> Layer:
        is_plain = spec.media_type == media_types.OCI_LAYER
        if (spec.diff_id is not None or is_plain) and spec.media_type:
            size = spec.size
            if size is None:
                size = await self._cache.stat(spec.digest, lambda: self._located(spec))
            diff_id = spec.diff_id or spec.digest
            return Layer(Descriptor(spec.media_type, spec.digest, size), diff_id)
        return await self._remember(f"tar:{spec.digest}", await self._read_through(spec))

    async def _located(self, spec: TarLayer) -> Located:
        return Located([Origin(UrlBlob(self._places.web, spec.url))], spec.size)

    async def _read_through(self, spec: TarLayer) -> Layer:
        """Its compression by its first bytes, its diff_id by unpacking it; the download verified it."""
        descriptor, name = await asyncio.to_thread(scratch_file, self._storage.scratch)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async with self._cache.open(spec.digest, lambda: self._located(spec)) as blob:
                    async for data in read_parts(blob, ByteRange().resolve(blob.size)):
                        await asyncio.to_thread(file.write, data)
            media_type, size, diff_id = await asyncio.to_thread(look_into, Path(name))
        finally:
            await asyncio.to_thread(Path(name).unlink)
        if spec.diff_id not in {None, diff_id}:
            raise LayerUnavailable(f"tar {spec.digest}", f"its diff_id is {diff_id}")
        if spec.media_type not in {"", media_type}:
            raise LayerUnavailable(f"tar {spec.digest}", f"it is {media_type}, not {spec.media_type}")
        return Layer(Descriptor(media_type, spec.digest, size), diff_id)

    # ----- a snapshot of a workspace -----

    async def _snapshot(self, spec: SnapshotLayer) -> Layer:
        ref = await self._snapshots.find(spec)
        key = f"snapshot:{spec.workspace}:{ref.id}:{ref.tar_crc32}:{spec.at}"
        known = await self._remembered(key)
        if known is not None and await asyncio.to_thread(self._storage.path(known.descriptor.digest).exists):
            return known

        async def build() -> Layer:
            built = await self._snapshots.build(ref, spec.at, self._storage.scratch)
            descriptor = built.layer.descriptor
            await self._storage.adopt(built.path, descriptor.digest, descriptor.size, "composed")
            _log.info("snapshot_made_a_layer", workspace=spec.workspace, snapshot=ref.id)
            return await self._remember(key, built.layer)

        return await self._flights.do(key, build)

    # ----- what was learnt -----

    async def _remembered(self, key: str) -> Layer | None:
        def work(connection: sqlite3.Connection) -> tuple[str, int, str, str] | None:
            row: tuple[str, int, str, str] | None = connection.execute(
                "SELECT digest, size, media_type, diff_id FROM layers WHERE key = ?", (key,)
            ).fetchone()
            return row

        try:
            row = await self._memory.do(work)
        except (sqlite3.Error, OSError) as error:
            _log.warning("layers_not_remembered", reason=str(error))
            return None
        return Layer(Descriptor(row[2], Digest(row[0]), row[1]), Digest(row[3])) if row else None

    async def _remember(self, key: str, layer: Layer) -> Layer:
        found = layer.descriptor
        row = (key, found.digest, found.size, found.media_type, layer.diff_id)
        try:
            await self._memory.do(
                lambda connection: connection.execute(
                    "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?)", row
                )
            )
        except (sqlite3.Error, OSError) as error:
            _log.warning("layers_not_remembered", reason=str(error))
        return layer
