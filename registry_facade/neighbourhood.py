"""The part of the composition root that builds the neighbours: peers and IPFS, as configured."""

import contextlib
from collections.abc import AsyncIterator

from ocikit.distribution.transport import Transport
from registry_facade.cache.catalog import Catalog
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.peers.client import DEADLINES, PeerClient
from registry_facade.peers.membership import Membership
from registry_facade.peers.metrics import PeerMetrics
from registry_facade.peers.source import Peers
from registry_facade.settings import FacadeSettings
from registry_facade.sources.neighbours import Neighbour, Neighbours
from servicekit.metrics import Metrics
from servicekit.tasks import BackgroundTasks


@contextlib.asynccontextmanager
async def neighbours_of(
    settings: FacadeSettings,
    metrics: Metrics,
    background: BackgroundTasks,
    peer_metrics: PeerMetrics,
    catalog: Catalog,
) -> AsyncIterator[Neighbours]:
    """Peers come first: they are asked in one request, and one of them may be getting the blob just now."""
    async with contextlib.AsyncExitStack() as stack:
        members: list[Neighbour] = []
        if settings.peers:
            transport = await stack.enter_async_context(Transport(DEADLINES))
            client = PeerClient(transport, settings.peer_token)
            members.append(Peers(Membership(settings.peers, settings.peer_url), client, peer_metrics))
        if settings.ipfs_api or settings.ipfs_gateways:
            from registry_facade.ipfs.opening import IpfsNeighbours  # noqa: PLC0415 (see there)

            ipfs = IpfsNeighbours(settings, IpfsMetrics.on(metrics), background, catalog, stack)
            members += await ipfs.members()
        yield Neighbours(members)
