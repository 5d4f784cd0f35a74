"""Content layers as blobs of the cache: made when first needed, made anew when their files change."""

import asyncio
import functools
from collections.abc import Mapping

from ocikit.compose import Layer
from registry_facade.cache.memory import MemoryCache
from registry_facade.cache.storage import Storage
from registry_facade.image_spec import FileLayer, InlineLayer
from registry_facade.layers.content import WriteLazy, build_layer, build_lazy, fingerprint
from registry_facade.layers.estargz import write_estargz
from registry_facade.layers.zstd_chunked import write_zstd_chunked
from servicekit.single_flight import SingleFlight

LAZY: Mapping[str, WriteLazy] = {"estargz": write_estargz, "zstd:chunked": write_zstd_chunked}


class MadeLayers:
    """Safe for concurrent use on one event loop. ``lazy`` is one of `LAZY`, or empty for plain tars."""

    def __init__(self, storage: Storage, *, lazy: str = "") -> None:
        self._storage = storage
        self._build = functools.partial(build_lazy, LAZY[lazy]) if lazy else build_layer
        self._known: MemoryCache[str, Layer] = MemoryCache(10_000)
        self._flights: SingleFlight[str, Layer] = SingleFlight()

    async def layer(self, spec: FileLayer | InlineLayer) -> Layer:
        """The layer, its blob in the cache. Raises LayerUnavailable or CacheUnusable."""
        key = await asyncio.to_thread(fingerprint, spec)
        known = self._known.get(key)
        if known is not None and await asyncio.to_thread(self._storage.path(known.descriptor.digest).exists):
            return known
        return await self._flights.do(key, lambda: self._make(key, spec))

    async def _make(self, key: str, spec: FileLayer | InlineLayer) -> Layer:
        built = await asyncio.to_thread(self._build, spec, self._storage.scratch)
        descriptor = built.layer.descriptor
        await self._storage.adopt(built.path, descriptor.digest, descriptor.size, "composed")
        self._known.put(key, built.layer, 1)
        return built.layer
