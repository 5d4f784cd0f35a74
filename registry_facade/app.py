"""The composition root: builds every part of the facade from its settings, and takes it down again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ocikit.disk_store import DiskBlobStore
from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import CredentialProvider, DockerConfigCredentials, default_docker_config
from ocikit.distribution.transport import Deadlines, Transport
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.storage import Storage
from registry_facade.composing import Composer
from registry_facade.digest_index.opening import digest_index
from registry_facade.handlers import PullHandlers
from registry_facade.ipfs.announce import Announcer
from registry_facade.ipfs.kubo import READ_DEADLINES, Kubo
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.neighbour import IpfsNeighbour
from registry_facade.ipfs.source import IpfsSource
from registry_facade.layers.made import MadeLayers
from registry_facade.locating import Locator
from registry_facade.manifests import Freshness, Manifests
from registry_facade.metrics import FacadeMetrics
from registry_facade.providers import DirectorySpecs, ImageSpecProvider, NoSpecs
from registry_facade.settings import FacadeSettings
from registry_facade.sources.neighbours import Neighbours
from registry_facade.sources.read_through import ReadThrough
from registry_facade.sources.upstream import LayoutUpstream, RegistryUpstream, Upstream, Upstreams
from servicekit.backoff import Backoff
from servicekit.lifecycle import Listener, serve_until_signal
from servicekit.metrics import Metrics
from servicekit.tasks import BackgroundTasks
from servicekit.web import Readiness, access_middleware, operations_routes

_NOTE_USES_EVERY_S = 5.0
_DEADLINES = Deadlines(connect_s=5.0, first_byte_s=30.0, idle_s=30.0)


@dataclass(frozen=True)
class Facade:
    """What is listened with: pulls, and beside them probes, metrics and administration."""

    pulls: web.Application
    operations: web.Application
    readiness: Readiness


@contextlib.asynccontextmanager
async def facade(settings: FacadeSettings) -> AsyncIterator[Facade]:
    """All parts running, until the block ends. Raises CacheUnusable for a cache that cannot be opened."""
    metrics = Metrics(process=True)
    counted = FacadeMetrics.on(metrics)
    readiness = Readiness()
    async with contextlib.AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(Catalog(settings.cache_dir / "catalog.sqlite"))
        storage = Storage(settings.cache_dir, catalog, counted, max_bytes=settings.cache_max_bytes)
        stack.push_async_callback(storage.note_uses)
        transport = await stack.enter_async_context(Transport(_DEADLINES))
        background = await stack.enter_async_context(BackgroundTasks(drain_s=settings.drain_s))
        upstreams = Upstreams(_upstreams(settings, transport))
        neighbours = await stack.enter_async_context(_neighbours(settings, metrics, background))
        cache = ReadThrough(storage, counted, background, linger_s=settings.linger_s, neighbours=neighbours)
        locator = Locator(upstreams, catalog, neighbours.origins())
        manifests = Manifests(
            upstreams, storage, catalog, counted, background, freshness=_freshness(settings)
        )
        composer = Composer(_provider(settings, upstreams), manifests, cache, locator, MadeLayers(storage))
        handlers = PullHandlers(
            upstreams.names, _default_upstream(settings), manifests, composer, cache, locator, counted
        )
        stack.push_async_callback(_cancel, asyncio.create_task(_note_uses(storage)))
        yield _applications(settings, metrics, readiness, handlers)


@contextlib.asynccontextmanager
async def _neighbours(
    settings: FacadeSettings, metrics: Metrics, background: BackgroundTasks
) -> AsyncIterator[Neighbours]:
    """IPFS, when a node is configured."""
    if not settings.ipfs_api:
        yield Neighbours()
        return
    index = digest_index(
        settings.digest_index,
        default=settings.cache_dir / "cids.sqlite",
        password=settings.digest_index_password,
    )
    async with contextlib.aclosing(index), Transport(READ_DEADLINES) as transport:
        kubo, counted = Kubo(transport, settings.ipfs_api), IpfsMetrics.on(metrics)
        store = DiskBlobStore(settings.cache_dir)
        announcer = Announcer(kubo, index, counted, background)
        yield Neighbours([IpfsNeighbour(IpfsSource(kubo, index, counted), announcer, store, background)])


async def _note_uses(storage: Storage) -> None:
    while True:
        await asyncio.sleep(_NOTE_USES_EVERY_S)
        await storage.note_uses()


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _applications(
    settings: FacadeSettings, metrics: Metrics, readiness: Readiness, handlers: PullHandlers
) -> Facade:
    pulls = web.Application(middlewares=[access_middleware(metrics, service="facade")])
    operations = pulls
    if settings.admin_listen is not None:
        operations = web.Application()
    operations.add_routes(operations_routes(metrics, readiness))
    pulls.add_routes(handlers.routes())
    return Facade(pulls, operations, readiness)


def _upstreams(settings: FacadeSettings, transport: Transport) -> Sequence[Upstream]:
    path = settings.docker_config or default_docker_config(Path.home(), None)
    credentials = DockerConfigCredentials(path)
    return [_upstream(name, target, transport, credentials) for name, target in settings.upstreams.items()]


def _upstream(name: str, target: str, transport: Transport, credentials: CredentialProvider) -> Upstream:
    if target.startswith("oci:"):
        return LayoutUpstream(name, Path(target.removeprefix("oci:")))
    # the facade resumes and changes sources itself; more patience here would only delay that
    client = RegistryClient(
        RegistryHost(name, target.rstrip("/")),
        transport,
        credentials,
        backoff=Backoff(attempts=2, first_s=0.1),
    )
    return RegistryUpstream(name, client)


def _freshness(settings: FacadeSettings) -> Freshness:
    return Freshness(
        fresh_s=settings.tag_fresh_s,
        revalidate_s=settings.tag_revalidate_s,
        budget_s=settings.stale_budget_s,
    )


def _default_upstream(settings: FacadeSettings) -> str:
    if settings.default_upstream or len(settings.upstreams) != 1:
        return settings.default_upstream
    return next(iter(settings.upstreams))


def _provider(settings: FacadeSettings, upstreams: Upstreams) -> ImageSpecProvider:
    if settings.image_specs is None:
        return NoSpecs()
    return DirectorySpecs(settings.image_specs, upstreams.names)


async def serve(settings: FacadeSettings, on_started: Callable[[list[tuple[str, int]]], None]) -> None:
    """Serves until SIGTERM or SIGINT; ``on_started`` gets the bound addresses, pulls first."""
    async with facade(settings) as running:
        listeners = [Listener(running.pulls, *settings.listen)]
        if settings.admin_listen is not None:
            listeners.append(Listener(running.operations, *settings.admin_listen))
        await serve_until_signal(
            listeners, running.readiness, drain_s=settings.drain_s, on_started=on_started
        )
