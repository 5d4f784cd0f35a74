"""The composition root of the content service."""

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import structlog
from aiohttp import web

from content.access import Callers, caller_middleware, read_callers
from content.disk_guard import DiskGuard
from content.handlers import ContentHandlers
from content.initializers.policy import Policy
from content.io_limits.controller import Law, PressureController
from content.io_limits.groups import GroupSettings, JobGroups
from content.io_limits.limiter import IoLimits
from content.io_limits.workspaces import WorkspaceLimits
from content.jobs import JobRunner
from content.metrics import IoMetrics, JobMetrics, PeriodicMetrics, StoreMetrics
from content.node import Node
from content.objects.base import MultipartStore
from content.objects.opening import StoreAddress, StoreOptions, open_store
from content.periodic import PeriodicBackups, Schedules
from content.problems import problem_middleware
from content.processes.parent import JobProcesses, StoreSetup
from content.rates import Buckets, Rates
from content.reloading import Reloading
from content.retention import KeepRules
from content.settings import ContentSettings, JobSettings
from content.staging import sweep
from content.turns import Pool, Turns
from servicekit.lifecycle import Listener, is_loopback, serve_until_signal
from servicekit.metrics import Metrics
from servicekit.settings import SettingsInvalid
from servicekit.tasks import BackgroundTasks
from servicekit.tls import ServerTls
from servicekit.web import Readiness, access_middleware, operations_routes

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class TakingOver:
    """Takes over what can change while jobs run. Raises SettingsInvalid, and then nothing has changed."""

    node: Node
    callers: Callers
    controller: PressureController | None = None

    async def __call__(self, settings: ContentSettings) -> None:
        self.callers.take_over(await asyncio.to_thread(checked, settings))
        node = self.node
        node.job_rates, node.keep = _rates(settings.job), _keep(settings)
        node.periodic_every_s = settings.periodic.every_s
        node.sources = Policy(settings.source_protocols, settings.source_hosts)
        node.buckets.change(_rates(settings))
        if self.controller is not None:
            self.controller.law = _law(settings)


TAKE_OVER = web.AppKey("take_over", TakingOver)


@contextlib.asynccontextmanager
async def content_service(settings: ContentSettings) -> AsyncIterator[tuple[web.Application, Readiness]]:
    """All parts running until the block ends; jobs are drained before the store closes.

    Raises SettingsInvalid, and what opening the store raises.
    """
    callers = await asyncio.to_thread(checked, settings)
    metrics, readiness = Metrics(process=True), Readiness()
    buckets, store_metrics, io_metrics = (
        Buckets(_rates(settings)),
        StoreMetrics.on(metrics),
        IoMetrics.on(metrics),
    )
    options = StoreOptions(
        settings.s3_endpoint or None,
        settings.concurrency,
        buckets["send"],
        buckets["receive"],
        store_metrics,
    )
    groups = await asyncio.to_thread(_groups, settings, io_metrics)
    async with (
        open_store(settings.store, options) as store,
        JobProcesses(_store_setup(settings, store), store_metrics, groups) as processes,
        JobRunner(
            _turns(settings), JobMetrics.on(metrics), queue_deadline_s=settings.queue_deadline_s
        ) as jobs,
        BackgroundTasks(drain_s=0) as background,
    ):
        if swept := await asyncio.to_thread(sweep, settings.workspaces_root):
            _log.warning("unfinished_restores_swept", paths=[path.name for path in swept])
        node = Node(
            store=store,
            workspaces_root=settings.workspaces_root,
            jobs=jobs,
            processes=processes,
            periodic=PeriodicBackups(
                Schedules(settings.state_dir / "schedules.json"), PeriodicMetrics.on(metrics)
            ),
            disk=DiskGuard(settings.workspaces_root, settings.min_free_bytes, readiness, metrics),
            limits=WorkspaceLimits(settings.workspace_cgroups, settings.workspaces_root, io_metrics),
            buckets=buckets,
            job_rates=_rates(settings.job),
            readiness=readiness,
            sources=Policy(settings.source_protocols, settings.source_hosts),
            keep=_keep(settings),
            periodic_every_s=settings.periodic.every_s,
        )
        await node.periodic.start()
        await node.disk.check()
        work: dict[str, Coroutine[Any, Any, None]] = {
            "disk-guard": node.disk.watch(),
            "workspace-limits": node.limits.run(),
            "periodic-backups": node.periodic.run(node.start_periodic, lambda: not readiness.reasons),
        }
        controller = _controller(settings, buckets, io_metrics)
        if controller is not None:
            work["pressure"] = controller.run()
        for name, what in work.items():
            _held_by_background = background.start(what, name=name)
        app = _application(node, callers, metrics)
        app[TAKE_OVER] = TakingOver(node, callers, controller)
        app.on_shutdown.append(_drain(jobs, readiness, settings.drain_s))
        yield app, readiness


def _application(node: Node, callers: Callers, metrics: Metrics) -> web.Application:
    middlewares = [
        access_middleware(metrics, service="content"),
        problem_middleware,
        caller_middleware(callers),
    ]
    app = web.Application(middlewares=middlewares)
    app.add_routes(operations_routes(metrics, node.readiness))
    app.add_routes(ContentHandlers(node).routes())
    return app


def _controller(settings: ContentSettings, buckets: Buckets, metrics: IoMetrics) -> PressureController | None:
    files = settings.pressure.files
    return PressureController(files, buckets, _law(settings), metrics) if files else None


def _law(settings: ContentSettings) -> Law:
    return Law(settings.pressure.target, settings.pressure.floor_share, settings.pressure.floor_bytes_s)


def _turns(settings: ContentSettings) -> Turns:
    slots: dict[Pool, int] = {
        "restore": settings.restores,
        "final_backup": settings.backups,
        "periodic_backup": settings.periodic_backups,
    }
    return Turns(slots, settings.jobs)


def _keep(settings: ContentSettings) -> KeepRules:
    periodic = settings.periodic
    return KeepRules(periodic.keep_last, periodic.keep_hourly, periodic.keep_daily, periodic.keep_weekly)


def _rates(settings: ContentSettings | JobSettings) -> Rates:
    return Rates(
        settings.send_rate_bytes_s,
        settings.receive_rate_bytes_s,
        settings.read_rate_bytes_s,
        settings.write_rate_bytes_s,
    )


def _store_setup(settings: ContentSettings, store: MultipartStore) -> StoreSetup:
    return StoreSetup(
        settings.store,
        settings.s3_endpoint or None,
        settings.concurrency,
        store.properties,
        str(settings.state_dir.absolute()),
    )


def _groups(settings: ContentSettings, metrics: IoMetrics) -> JobGroups | None:
    job = settings.job
    if job.cgroup is None:
        return None
    limits = IoLimits(job.io_read_bytes_s, job.io_write_bytes_s, job.io_read_iops, job.io_write_iops)
    groups = JobGroups(GroupSettings(job.cgroup, settings.workspaces_root, limits, job.io_weight), metrics)
    groups.prepare()
    return groups


def _drain(
    jobs: JobRunner, readiness: Readiness, drain_s: float
) -> Callable[[web.Application], Awaitable[None]]:
    async def drain(_app: web.Application) -> None:
        readiness.refuse("shutdown", "draining")
        await jobs.drain(drain_s)

    return drain


def checked(settings: ContentSettings) -> Callers:
    """Raises SettingsInvalid with every problem. Blocking."""
    problems: list[str] = []
    callers = Callers({})
    try:
        callers = read_callers(settings.tokens_file, settings.admin_token, settings.certificates_file)
    except SettingsInvalid as error:
        problems += error.problems
    try:
        StoreAddress.parse(settings.store)
    except ValueError as error:
        problems.append(f"content.store: {error}")
    if not settings.workspaces_root.is_dir():
        problems.append(f"content.workspaces_root: {settings.workspaces_root} is not a directory")
    for name in ("jobs", "concurrency", "restores", "backups", "periodic_backups"):
        if getattr(settings, name) < 1:
            problems.append(f"content.{name}: must be at least 1")
    problems += _impossible(settings)
    if not problems and not callers and not is_loopback(settings.listen[0]):
        problems.append(
            f"content.listen: {settings.listen[0]} can be reached by others; set content.tokens_file or "
            "content.admin_token, or listen on 127.0.0.1"
        )
    if problems:
        raise SettingsInvalid(problems)
    return callers


def _impossible(settings: ContentSettings) -> Iterator[str]:
    """Numbers that no limit can have, and settings that need others."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        yield "content.tls_certificate and content.tls_key: both or none"
    if settings.tls_client_ca is not None and settings.tls_certificate is None:
        yield "content.tls_client_ca: needs tls_certificate and tls_key"
    if settings.certificates_file is not None and settings.tls_client_ca is None:
        yield "content.certificates_file: needs tls_client_ca, or nobody's certificate is checked"
    rates = [name for name in dir(settings) if name.endswith("_rate_bytes_s")]
    yield from (f"content.{name}: 0 would stop everything" for name in rates if getattr(settings, name) == 0)
    job = settings.job
    names = [name for name in dir(job) if name.startswith("io_") or name.endswith("_rate_bytes_s")]
    for name in names:
        value = getattr(job, name)
        if value is not None and value <= 0:
            yield f"content.job.{name}: must be more than 0; leave it out for no limit"
    if job.io_weight is not None and job.io_weight > 10_000:
        yield "content.job.io_weight: must be at most 10000"
    if not 0 < settings.pressure.target <= 1:
        yield "content.pressure.target: must be a share of 1"
    if not 0 < settings.pressure.floor_share <= 1:
        yield "content.pressure.floor_share: must be a share of 1"
    if settings.pressure.floor_bytes_s < 1:
        yield "content.pressure.floor_bytes_s: must be more than 0"


async def serve(
    settings: ContentSettings,
    on_started: Callable[[list[tuple[str, int]]], None],
    *,
    reload: Callable[[], ContentSettings] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; ``on_started`` gets the bound address. SIGHUP takes over what
    ``reload`` (blocking) gives, as far as that needs no restart.
    """
    async with content_service(settings) as (app, readiness), BackgroundTasks(drain_s=0) as background:
        tls = await asyncio.to_thread(_tls, settings)
        if tls is not None:
            _watching = background.start(tls.watch(), name="certificate")
        if reload is not None:
            reloading = Reloading(settings, reload, app[TAKE_OVER])
            _waiting = background.start(reloading.on_signal(signal.SIGHUP), name="reload")
        listener = Listener(app, *settings.listen, tls=tls.context if tls is not None else None)
        await serve_until_signal([listener], readiness, drain_s=settings.drain_s, on_started=on_started)


def _tls(settings: ContentSettings) -> ServerTls | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, client_optional=True)
