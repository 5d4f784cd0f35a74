"""The agent's API: parse, ask, answer. What the routes mean is in `content.openapi`."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from content import maintenance
from content.access import ANY, OWNER, require_owner
from content.catalog import Catalog
from content.confinement import confined
from content.disk_guard import TOPIC
from content.errors import JobNotFound
from content.fields import InvalidRequest
from content.initializers.policy import Policy
from content.initializers.specs import parse_initializer, snapshots_of
from content.jobs import Job, JobRunner, Pool
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.openapi import document
from content.processes.parent import JobProcesses
from content.rates import WAYS, Buckets, Rates
from content.requests import (
    RATE_FIELDS,
    parse_backup,
    parse_initialization,
    parse_rates,
    parse_restore,
    read_fields,
)
from content.safety import safe_to_delete
from content.tasks import Task
from servicekit.clock import Clock, SystemClock
from servicekit.web import Readiness

_EVENT_EVERY_S = 0.5


@dataclass(slots=True)
class Node:
    """What the handlers work with. ``job_rates`` are those that new jobs begin with."""

    store: MultipartStore
    workspaces_root: Path
    jobs: JobRunner
    processes: JobProcesses
    buckets: Buckets
    job_rates: Rates
    readiness: Readiness
    sources: Policy
    clock: Clock = SystemClock()


class ContentHandlers:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        workspace = "/v1/workspaces/{owner}/{id}"
        return [
            web.get("/openapi.json", self.describe),
            web.post(f"{workspace}/backups", self.start_backup),
            web.post(f"{workspace}/restores", self.start_restore),
            web.post(f"{workspace}/initializations", self.start_initialization),
            web.get(f"{workspace}/snapshots", self.list_snapshots),
            web.delete(f"{workspace}/snapshots/{{snapshot_id}}", self.delete_snapshot),
            web.get(f"{workspace}/safety", self.safety),
            web.get("/v1/jobs", self.list_jobs),
            web.get("/v1/jobs/{job_id}", self.show_job),
            web.delete("/v1/jobs/{job_id}", self.cancel_job),
            web.get("/v1/jobs/{job_id}/events", self.watch_job),
            web.get("/v1/limits", self.show_limits),
            web.patch("/v1/limits", self.change_limits),
            web.get("/v1/jobs/{job_id}/limits", self.show_job_limits),
            web.patch("/v1/jobs/{job_id}/limits", self.change_job_limits),
        ]

    async def describe(self, _request: web.Request) -> web.Response:
        return web.json_response(document())

    def _workspace(self, request: web.Request) -> Workspace:
        workspace = Workspace.parse(f"{request.match_info['owner']}/{request.match_info['id']}")
        require_owner(request, workspace.owner)
        return workspace

    async def _place(self, request: web.Request, workspace: Workspace, path: str | None) -> Task:
        """Where the tree is. A token of one owner reaches that owner's directory only; what is asked for
        now is confined again when the work begins. Raises PathOutsideRoot.
        """
        root, owner = self._node.workspaces_root, request[OWNER]
        base = root if owner == ANY else root / owner
        wanted = str(root / (path or str(workspace)))
        await asyncio.to_thread(confined, base, wanted)
        return {"workspace": str(workspace), "root": str(base), "path": wanted}

    async def start_backup(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        asked = parse_backup(await read_fields(request))
        place = await self._place(request, workspace, asked.path)
        pool: Pool = "final_backup" if asked.kind == "final" else "periodic_backup"
        task = {**dataclasses.asdict(asked), **place, "what": "backup"}
        return self._started(request, pool, workspace, task)

    async def start_restore(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        asked = parse_restore(await read_fields(request))
        place = await self._place(request, workspace, asked.path)
        task = {**dataclasses.asdict(asked), **place, "what": "restore"}
        return self._started(request, "restore", workspace, task)

    async def start_initialization(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        asked = parse_initialization(await read_fields(request))
        initializer = parse_initializer(asked.initializer, workspace, protocols=node.sources.protocols)
        for other in snapshots_of(initializer):
            require_owner(request, other.owner)
        place = await self._place(request, workspace, asked.path)
        sources = {"protocols": list(node.sources.protocols), "hosts": list(node.sources.hosts)}
        task = {**dataclasses.asdict(asked), **place, "sources": sources, "what": "initialize"}
        return self._started(request, "restore", workspace, task)

    def _started(self, request: web.Request, pool: Pool, workspace: Workspace, task: Task) -> web.Response:
        node = self._node
        if "shutdown" in node.readiness.reasons:
            raise web.HTTPServiceUnavailable(text="the node is shutting down")
        if pool == "periodic_backup" and TOPIC in node.readiness.reasons:
            short = node.readiness.reasons[TOPIC]
            raise web.HTTPServiceUnavailable(text=f"no periodic backups while the disk is short: {short}")
        key = request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= 200:
            raise InvalidRequest(["Idempotency-Key: must have 1 to 200 characters"])
        identity = {"pool": pool, **task}
        job = node.jobs.repeated(workspace, key, identity)
        if job is None:

            async def work(job: Job) -> Mapping[str, Any]:
                return await node.processes.run(job, task)

            buckets = Buckets(node.job_rates, node=node.buckets)
            job = node.jobs.start(pool, workspace, work, key=key, request=identity, buckets=buckets)
        return web.json_response(self._document(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})

    def _document(self, job: Job) -> dict[str, Any]:
        return job.document(self._node.clock.time())

    def _job(self, request: web.Request) -> Job:
        """A job of another owner is as absent as one that never was."""
        job = self._node.jobs.get(request.match_info["job_id"])
        if request[OWNER] not in {ANY, job.workspace.owner}:
            raise JobNotFound(job.id)
        return job

    async def list_jobs(self, request: web.Request) -> web.Response:
        owner = request[OWNER]
        jobs = [job for job in self._node.jobs.jobs() if owner in {ANY, job.workspace.owner}]
        return web.json_response({"jobs": [self._document(job) for job in jobs]})

    async def show_job(self, request: web.Request) -> web.Response:
        return web.json_response(self._document(self._job(request)))

    async def cancel_job(self, request: web.Request) -> web.Response:
        job = self._job(request)
        self._node.jobs.cancel(job.id)
        return web.json_response(self._document(job), status=202)

    async def watch_job(self, request: web.Request) -> web.StreamResponse:
        job = self._job(request)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        last = ""
        while True:
            over = job.finished.is_set()
            text = json.dumps(self._document(job))
            if text != last or over:
                name = "end" if over else "progress"
                await response.write(f"event: {name}\ndata: {text}\n\n".encode())
                last = text
            if over:
                return response
            try:
                async with asyncio.timeout(_EVENT_EVERY_S):
                    await job.finished.wait()
            except TimeoutError:
                continue

    async def list_snapshots(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        pointer = (await Catalog(self._node.store, workspace).load()).pointer
        return web.json_response(
            {
                "workspace": str(workspace),
                "incarnation": pointer.incarnation,
                "snapshots": [dataclasses.asdict(snapshot) for snapshot in pointer.snapshots],
            }
        )

    async def delete_snapshot(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        catalog = Catalog(self._node.store, workspace)
        snapshot = await catalog.snapshot(request.match_info["snapshot_id"])
        await maintenance.delete(self._node.store, catalog, [snapshot.id])
        return web.Response(status=204)

    async def safety(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        place = await self._place(request, workspace, request.query.get("path"))
        tree = Path(place["path"])
        answer = await safe_to_delete(node.store, Catalog(node.store, workspace), tree)
        return web.json_response(dataclasses.asdict(answer))

    async def show_limits(self, _request: web.Request) -> web.Response:
        return _rates(self._node.buckets)

    async def change_limits(self, request: web.Request) -> web.Response:
        require_owner(request, ANY)
        return await self._change(request, self._node.buckets)

    async def show_job_limits(self, request: web.Request) -> web.Response:
        return _rates(self._job(request).buckets)

    async def change_job_limits(self, request: web.Request) -> web.Response:
        job = self._job(request)
        require_owner(request, ANY)
        return await self._change(request, job.buckets)

    async def _change(self, request: web.Request, buckets: Buckets) -> web.Response:
        buckets.change(parse_rates(await read_fields(request), buckets.rates))
        return _rates(buckets)


def _rates(buckets: Buckets) -> web.Response:
    return web.json_response({RATE_FIELDS[way]: getattr(buckets.rates, way) for way in WAYS})
