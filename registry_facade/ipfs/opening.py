"""The part of the composition root that builds what has to do with IPFS: a Kubo node, gateways, the index.

Imported only where IPFS is configured: Kubo's client and Redis's take 12 MiB of each worker.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ocikit.disk_store import DiskBlobStore
from ocikit.distribution.transport import Transport
from registry_facade.breaker import Breaker
from registry_facade.cache.catalog import Catalog
from registry_facade.digest_index.hinted import HintedIndex
from registry_facade.digest_index.opening import digest_index
from registry_facade.digest_index.sqlite import SqliteIndex
from registry_facade.errors import CacheUnusable
from registry_facade.ipfs import gateway, kubo
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.collector import Collector, Uses
from registry_facade.ipfs.exposure import Exposure
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.neighbour import GatewayNeighbour, IpfsNeighbour
from registry_facade.ipfs.node import Node
from registry_facade.ipfs.source import IpfsSource
from registry_facade.settings import FacadeSettings
from registry_facade.sources.neighbours import Neighbour
from servicekit.clock import SystemClock
from servicekit.tasks import BackgroundTasks

_FIRST_LOOK_S = 1.0


def opened_index(settings: FacadeSettings) -> HintedIndex:
    """The digest index that the settings name, with the hints of annotations behind it."""
    index = digest_index(
        settings.digest_index,
        default=settings.cache_dir / "cids.sqlite",
        password=settings.digest_index_password,
    )
    return HintedIndex(index, SqliteIndex(settings.cache_dir / "annotated-cids.sqlite"))


def collector_of(
    settings: FacadeSettings, index: HintedIndex, catalog: Catalog, metrics: IpfsMetrics
) -> Collector:
    async def uses() -> Uses:
        try:
            return await catalog.uses()
        except CacheUnusable:
            return {}

    return Collector(Node(settings.ipfs_api), index, uses, metrics, budget_bytes=settings.ipfs_max_bytes)


@dataclass(frozen=True, slots=True)
class IpfsNeighbours:
    """What it opens is closed with ``stack``."""

    settings: FacadeSettings
    metrics: IpfsMetrics
    background: BackgroundTasks
    catalog: Catalog
    stack: contextlib.AsyncExitStack

    async def members(self) -> Sequence[Neighbour]:
        index = opened_index(self.settings)
        self.stack.push_async_callback(index.aclose)
        transport = await self.stack.enter_async_context(Transport(kubo.READ_DEADLINES))
        members: list[Neighbour] = []
        if self.settings.ipfs_api:
            members.append(await self._node(index, transport))
        return [*members, *(self._gateway(url, index, transport) for url in self.settings.ipfs_gateways)]

    async def _node(self, index: HintedIndex, transport: Transport) -> Neighbour:
        client = kubo.Kubo(transport, self.settings.ipfs_api)
        collector = collector_of(self.settings, index, self.catalog, self.metrics)
        exposure = Exposure(Node(self.settings.ipfs_api))
        with contextlib.suppress(TimeoutError):  # a node that hangs must not keep us from serving
            async with asyncio.timeout(_FIRST_LOOK_S):
                await exposure.look()
        await self._run(exposure.keep_looking())
        await self._run(collector.keep_going())
        adding = await self.stack.enter_async_context(Transport(kubo.ADD_DEADLINES))
        adder = kubo.Kubo(adding, self.settings.ipfs_api)
        announcer = Announcer(adder, index, self.metrics, self.background, room=collector.make_room)
        return IpfsNeighbour(
            IpfsSource(client, index, self.metrics),
            announcer,
            DiskBlobStore(self.settings.cache_dir),
            self.background,
            Breaker(SystemClock(), kubo.NAME),
            index,
            exposure,
        )

    def _gateway(self, url: str, index: HintedIndex, transport: Transport) -> Neighbour:
        reader = IpfsSource(
            gateway.Gateway(transport, url), index, self.metrics, name=gateway.NAME, unmaps=False
        )
        return GatewayNeighbour(reader, self.background, Breaker(SystemClock(), gateway.NAME), index)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.stack.push_async_callback(end)
