"""The composition root: builds every part of the facade from its settings, and takes it down again."""

import asyncio
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from ocikit.descriptor import Platform
from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import CredentialProvider, DockerConfigCredentials, default_docker_config
from ocikit.distribution.transport import Deadlines
from ocikit.distribution.wall import WalledTransport, parse_place, place_of
from registry_facade.access import AccessLog, access_middleware
from registry_facade.admin.access import admin_middleware
from registry_facade.admin.handlers import AdminHandlers
from registry_facade.admin.images import CachedImages
from registry_facade.admin.purges import Purges
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.claims import Claims
from registry_facade.cache.storage import Storage
from registry_facade.composing import Composer
from registry_facade.errors import CacheUnusable
from registry_facade.handlers import PullHandlers
from registry_facade.layers.opening import content_layers, walled_transport
from registry_facade.layers.web import UrlPlaces, Web
from registry_facade.local.handlers import LocalHandlers
from registry_facade.local.store import LocalStore
from registry_facade.locating import Locator
from registry_facade.manifests import Freshness, Manifests
from registry_facade.metrics import FacadeMetrics
from registry_facade.neighbourhood import neighbours_of
from registry_facade.peers.handlers import PeerHandlers
from registry_facade.peers.metrics import PeerMetrics
from registry_facade.pull_events import PullEvents
from registry_facade.pulls import Pulls
from registry_facade.settings import FacadeSettings, WarmSettings
from registry_facade.sharing import SharingRules
from registry_facade.soci.opening import soci_indexes
from registry_facade.sources.fellows import answering_fellows, metrics_of
from registry_facade.sources.read_through import ReadThrough
from registry_facade.sources.upstream import LayoutUpstream, RegistryUpstream, Upstream, Upstreams
from registry_facade.specs.opening import spec_provider, stored_specs
from registry_facade.tenancy.opening import gate_of
from registry_facade.warming.handlers import WarmHandlers
from registry_facade.warming.metrics import WarmMetrics
from registry_facade.warming.schedule import keep_warm, this_platform
from registry_facade.warming.warmer import Warmer
from registry_facade.workers import Seat, Workers, held_port
from servicekit.backoff import Backoff
from servicekit.lifecycle import Listener, ListenFailed, is_loopback, serve_until_signal
from servicekit.metrics import Metrics, merged
from servicekit.tasks import BackgroundTasks
from servicekit.tls import ServerTls
from servicekit.web import Readiness, operations_routes

_NOTE_USES_EVERY_S = 5.0
_SCRUB_EVERY_S = 2.0
_log = structlog.get_logger(__name__)
_CONNECT_S = 5.0


@dataclass(frozen=True)
class Facade:
    """What is listened with: pulls, and beside them probes, metrics and administration."""

    pulls: web.Application
    operations: web.Application
    readiness: Readiness
    tls: ServerTls | None = None


@contextlib.asynccontextmanager
async def facade(settings: FacadeSettings, seat: Seat | None = None) -> AsyncIterator[Facade]:
    """All parts running, until the block ends. Raises CacheUnusable for a cache that cannot be opened.

    ``seat`` is this process's place where it is one of several workers.
    """
    metrics = Metrics(process=True)
    counted = FacadeMetrics.on(metrics)
    readiness = Readiness()
    async with contextlib.AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(Catalog(settings.cache_dir / "catalog.sqlite"))
        storage = Storage(settings.cache_dir, catalog, counted, max_bytes=settings.cache_max_bytes)
        stack.push_async_callback(storage.note_uses)
        background = await stack.enter_async_context(BackgroundTasks(drain_s=settings.drain_s))
        upstreams = Upstreams(await _upstreams(settings, stack))
        peer_metrics = PeerMetrics.on(metrics)
        neighbours = await stack.enter_async_context(
            neighbours_of(settings, metrics, background, peer_metrics, catalog)
        )
        if seat is None:
            seat = Seat(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lapstrake-"))))
        cache = ReadThrough(
            storage,
            counted,
            background,
            linger_s=settings.linger_s,
            claims=Claims(settings.cache_dir / "partial", str(seat.address)),
            neighbours=neighbours,
        )
        soci = await soci_indexes(settings, cache, metrics, stack)
        await stack.enter_async_context(answering_fellows(seat.address, cache.open_own, metrics.render))
        sharing = SharingRules(settings.unshared_images, settings.public_images)
        urls = UrlPlaces(Web(await stack.enter_async_context(walled_transport(settings))))
        locator = Locator(upstreams, catalog, neighbours, sharing, urls)
        manifests = Manifests(
            upstreams,
            storage,
            catalog,
            counted,
            background,
            described=neighbours.described,
            freshness=_freshness(settings),
        )
        stored = await stored_specs(settings, upstreams.names, stack)
        provider = await spec_provider(settings, upstreams.names, stored, stack)
        layers = await content_layers(settings, storage, cache, urls, stack)
        composer = Composer(provider, manifests, cache, locator, layers, soci)
        pulls = Pulls(manifests, composer, locator)
        log = AccessLog(sys.stderr)
        stack.callback(log.flush)
        events = PullEvents(log.write, cache.received_from)
        stack.callback(events.close)
        handlers = PullHandlers(
            upstreams.names,
            _default_upstream(settings),
            pulls,
            cache,
            counted,
            events,
            await _local(settings, counted, stack),
            await gate_of(settings, pulls, upstreams, catalog, provider, counted, stack),
        )
        stack.push_async_callback(_cancel, asyncio.create_task(_note_uses(storage)))
        stack.push_async_callback(_cancel, asyncio.create_task(_scrub(storage, settings.scrub_age_s)))
        routes = handlers.routes()
        warmer = Warmer(pulls, cache, upstreams.names, _default_upstream(settings), WarmMetrics.on(metrics))
        if settings.warm.images and seat.number == 0:  # one worker fills the cache of all
            stack.push_async_callback(_cancel, asyncio.create_task(_keep_warm(warmer, settings.warm)))
        if settings.peers:
            peers = PeerHandlers(upstreams.names, cache, locator, settings.peer_token, counted, peer_metrics)
            routes += peers.routes()
        tls = await _tls(settings, stack)
        purges = Purges(catalog, storage, manifests)
        if seat.count > 1:
            stack.push_async_callback(_cancel, asyncio.create_task(purges.follow()))
        made = _applications(settings, metrics, readiness, routes, log, seat)
        if settings.admin_listen is not None or is_loopback(settings.listen[0]):
            made.operations.add_routes(WarmHandlers(warmer).routes())
            images = CachedImages(catalog, storage, manifests, purges)
            made.operations.add_routes(AdminHandlers(images, upstreams.names, stored).routes())
        yield dataclasses.replace(made, tls=tls)


async def _local(
    settings: FacadeSettings, counted: FacadeMetrics, stack: contextlib.AsyncExitStack
) -> LocalHandlers | None:
    if not settings.local.enabled:
        return None
    store = LocalStore(settings.local.root or settings.cache_dir / "local")
    stack.push_async_callback(store.aclose)
    return LocalHandlers(settings.local.namespace, store, counted)


async def _keep_warm(warmer: Warmer, settings: WarmSettings) -> None:
    platform = Platform.parse(settings.platform) if settings.platform else this_platform()
    rate_bytes_s = settings.limit_rate or None
    await keep_warm(warmer, settings.images, platform, rate_bytes_s, settings.every_s)


async def _tls(settings: FacadeSettings, stack: contextlib.AsyncExitStack) -> ServerTls | None:
    """Raises SettingsInvalid."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    tls = await asyncio.to_thread(
        ServerTls, settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    )
    stack.push_async_callback(_cancel, asyncio.create_task(tls.watch()))
    return tls


async def _note_uses(storage: Storage) -> None:
    while True:
        await asyncio.sleep(_NOTE_USES_EVERY_S)
        await storage.note_uses()


async def _scrub(storage: Storage, age_s: float) -> None:
    """One blob at a time, so that a disk at work hardly notices."""
    while True:
        await asyncio.sleep(_SCRUB_EVERY_S)
        try:
            await storage.scrub(time.time() - age_s)
        except CacheUnusable as error:
            _log.warning("scrub_failed", reason=str(error))


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _applications(
    settings: FacadeSettings,
    metrics: Metrics,
    readiness: Readiness,
    routes: Sequence[web.RouteDef],
    log: AccessLog,
    seat: Seat,
) -> Facade:
    async def of_all_workers() -> bytes:
        return merged(
            dict(sorted({str(seat.number): metrics.render(), **await metrics_of(seat.fellows)}.items())),
            "worker",
        )

    guard = admin_middleware(settings.admin_token)
    pulls = web.Application(middlewares=[access_middleware(metrics, log), guard])
    operations = pulls
    if settings.admin_listen is not None:
        operations = web.Application(middlewares=[guard])
    operations.add_routes(operations_routes(metrics, readiness, of_all_workers if seat.count > 1 else None))
    pulls.add_routes(routes)
    return Facade(pulls, operations, readiness)


async def _upstreams(settings: FacadeSettings, stack: contextlib.AsyncExitStack) -> Sequence[Upstream]:
    path = settings.docker_config or default_docker_config(Path.home(), None)
    credentials = DockerConfigCredentials(path)
    return [
        await _upstream(name, target, settings, credentials, stack)
        for name, target in settings.upstreams.items()
    ]


async def _upstream(
    name: str,
    target: str,
    settings: FacadeSettings,
    credentials: CredentialProvider,
    stack: contextlib.AsyncExitStack,
) -> Upstream:
    if target.startswith("oci:"):
        return LayoutUpstream(name, Path(target.removeprefix("oci:")))
    places = (parse_place(item) for item in settings.private_hosts)
    free = {place_of(target), *(place for place in places if place is not None)}
    idle_s = settings.upstream_idle_s
    deadlines = Deadlines(connect_s=_CONNECT_S, first_byte_s=idle_s, idle_s=idle_s)
    transport = await stack.enter_async_context(WalledTransport(deadlines, free))
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


async def serve(
    settings: FacadeSettings,
    on_started: Callable[[list[tuple[str, int]]], None],
    *,
    seat: Seat | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; ``on_started`` gets the bound addresses, pulls first.

    With a ``seat`` the ports are shared with fellow workers.
    """
    shared_port = seat is not None
    async with facade(settings, seat) as running:
        tls = running.tls.context if running.tls is not None else None
        listeners = [Listener(running.pulls, *settings.listen, tls=tls, reuse_port=shared_port)]
        if settings.admin_listen is not None:
            listeners.append(Listener(running.operations, *settings.admin_listen, reuse_port=shared_port))
        await serve_until_signal(
            listeners, running.readiness, drain_s=settings.drain_s, on_started=on_started
        )


def serve_with_workers(
    settings: FacadeSettings,
    on_started: Callable[[list[tuple[str, int]]], None],
    guarded: Callable[[Callable[[], None]], int],
) -> int:
    """Like `serve`, in ``settings.workers`` processes; blocking. Returns an exit status; raises ListenFailed.

    ``guarded`` runs what a worker does, and makes an exit status of what it raises.
    """
    with contextlib.ExitStack() as stack:
        pulls = _held(stack, settings.listen)
        admin = _held(stack, settings.admin_listen) if settings.admin_listen is not None else None
        fixed = dataclasses.replace(settings, listen=pulls, admin_listen=admin)
        addresses = [pulls] if admin is None else [pulls, admin]
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lapstrake-")))

        def work(number: int, ready: Callable[[], None]) -> int:
            seat = Seat(directory, number, settings.workers)
            return guarded(lambda: asyncio.run(serve(fixed, lambda _: ready(), seat=seat)))

        return Workers(settings.workers, work, lambda: on_started(addresses)).run()


def _held(stack: contextlib.ExitStack, address: tuple[str, int]) -> tuple[str, int]:
    try:
        return stack.enter_context(held_port(*address))
    except OSError as error:
        raise ListenFailed(*address, error.strerror or str(error)) from error
