"""The part of the composition root that builds what makes content layers."""

import contextlib

from ocikit.distribution.transport import Deadlines, Transport
from ocikit.distribution.wall import WalledTransport, parse_place
from registry_facade.cache.storage import Storage
from registry_facade.layers.content_layers import ContentLayers, layer_memory
from registry_facade.layers.snapshots import SnapshotStore
from registry_facade.layers.web import UrlPlaces, Web
from registry_facade.settings import FacadeSettings
from registry_facade.sources.read_through import ReadThrough

_DEADLINES = Deadlines(connect_s=5.0, first_byte_s=30.0, idle_s=30.0)


def walled_transport(settings: FacadeSettings) -> Transport:
    """For URLs that specs name: public addresses, and the private ones that the operator names."""
    places = (parse_place(item) for item in settings.private_hosts)
    return WalledTransport(_DEADLINES, {place for place in places if place is not None})


async def content_layers(
    settings: FacadeSettings,
    storage: Storage,
    cache: ReadThrough,
    urls: UrlPlaces,
    stack: contextlib.AsyncExitStack,
) -> ContentLayers:
    memory = await stack.enter_async_context(layer_memory(settings.cache_dir / "layers.sqlite"))
    token = settings.snapshot_token.reveal()
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    transport = await stack.enter_async_context(Transport(_DEADLINES))
    snapshots = SnapshotStore(settings.snapshot_store, Web(transport, shown))
    lazy = "" if settings.lazy_layers == "none" else settings.lazy_layers
    return ContentLayers(storage, cache, urls, snapshots, memory, lazy=lazy)
