"""The part of the composition root that builds the neighbours: peers and IPFS, as configured."""

import contextlib
from collections.abc import AsyncIterator

from ocikit.disk_store import DiskBlobStore
from ocikit.distribution.transport import Transport
from registry_facade.breaker import Breaker
from registry_facade.digest_index.opening import digest_index
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.kubo import NAME, READ_DEADLINES, Kubo
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.neighbour import IpfsNeighbour
from registry_facade.ipfs.source import IpfsSource
from registry_facade.peers.client import DEADLINES, PeerClient
from registry_facade.peers.membership import Membership
from registry_facade.peers.metrics import PeerMetrics
from registry_facade.peers.source import Peers
from registry_facade.settings import FacadeSettings
from registry_facade.sources.neighbours import Neighbour, Neighbours
from servicekit.clock import SystemClock
from servicekit.metrics import Metrics
from servicekit.tasks import BackgroundTasks


@contextlib.asynccontextmanager
async def neighbours_of(
    settings: FacadeSettings, metrics: Metrics, background: BackgroundTasks, peer_metrics: PeerMetrics
) -> AsyncIterator[Neighbours]:
    """Peers come first: they are asked in one request, and one of them may be getting the blob just now."""
    async with contextlib.AsyncExitStack() as stack:
        members: list[Neighbour] = []
        if settings.peers:
            transport = await stack.enter_async_context(Transport(DEADLINES))
            client = PeerClient(transport, settings.peer_token)
            members.append(Peers(Membership(settings.peers, settings.peer_url), client, peer_metrics))
        if settings.ipfs_api:
            members.append(await _ipfs(settings, metrics, background, stack))
        yield Neighbours(members)


async def _ipfs(
    settings: FacadeSettings, metrics: Metrics, background: BackgroundTasks, stack: contextlib.AsyncExitStack
) -> Neighbour:
    index = digest_index(
        settings.digest_index,
        default=settings.cache_dir / "cids.sqlite",
        password=settings.digest_index_password,
    )
    stack.push_async_callback(index.aclose)
    transport = await stack.enter_async_context(Transport(READ_DEADLINES))
    kubo, counted = Kubo(transport, settings.ipfs_api), IpfsMetrics.on(metrics)
    announcer = Announcer(kubo, index, counted, background)
    store = DiskBlobStore(settings.cache_dir)
    breaker = Breaker(SystemClock(), NAME)
    return IpfsNeighbour(IpfsSource(kubo, index, counted), announcer, store, background, breaker)
