"""The agent's API: parse, ask, answer. What the routes mean is in `content.openapi`."""

import asyncio
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

from content import maintenance
from content.access import ANY, DOWNLOADS, OWNER, require_owner
from content.catalog import Catalog
from content.confinement import confined
from content.errors import JobNotFound, ObjectCorrupt
from content.fields import InvalidRequest
from content.initializers.specs import parse_initializer, snapshots_of
from content.io_limits.workspaces import Held
from content.jobs import Job
from content.keys import Workspace
from content.node import Node, NodeUnready
from content.openapi import document
from content.periodic import Schedule
from content.presigning import presigner
from content.rates import WAYS, Buckets
from content.requests import (
    RATE_FIELDS,
    parse_backup,
    parse_expiry,
    parse_initialization,
    parse_io_limits,
    parse_rates,
    parse_restore,
    parse_schedule,
    read_fields,
)
from content.safety import safe_to_delete
from content.tasks import Task
from content.turns import Pool

_EVENT_EVERY_S = 0.5
_PIECE_BYTES = 1 << 20


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
            web.get(f"{workspace}/schedule", self.show_schedule),
            web.put(f"{workspace}/schedule", self.put_schedule),
            web.delete(f"{workspace}/schedule", self.delete_schedule),
            web.get("/v1/schedules", self.list_schedules),
            web.get(f"{workspace}/snapshots", self.list_snapshots),
            web.delete(f"{workspace}/snapshots/{{snapshot_id}}", self.delete_snapshot),
            web.get(f"{workspace}/snapshots/{{snapshot_id}}/download", self.link),
            web.get(f"{DOWNLOADS}/{{owner}}/{{id}}/{{snapshot_id}}.tar", self.download),
            web.get(f"{workspace}/safety", self.safety),
            web.get("/v1/jobs", self.list_jobs),
            web.get("/v1/jobs/{job_id}", self.show_job),
            web.delete("/v1/jobs/{job_id}", self.cancel_job),
            web.get("/v1/jobs/{job_id}/events", self.watch_job),
            web.get(f"{workspace}/io-limits", self.show_io_limits),
            web.put(f"{workspace}/io-limits", self.put_io_limits),
            web.delete(f"{workspace}/io-limits", self.clear_io_limits),
            web.get("/v1/node", self.show_node),
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
        keep = dataclasses.asdict(self._node.keep)
        task = {**dataclasses.asdict(asked), **place, "what": "backup", "keep": keep}
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
        key = request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= 200:
            raise InvalidRequest(["Idempotency-Key: must have 1 to 200 characters"])
        try:
            job = self._node.start(pool, workspace, task, key=key)
        except NodeUnready as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        return web.json_response(self._document(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})

    async def show_schedule(self, request: web.Request) -> web.Response:
        return web.json_response(_schedule(self._node.periodic.get(self._workspace(request))))

    async def put_schedule(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        asked = parse_schedule(await read_fields(request))
        place = await self._place(request, workspace, asked.path)
        every_s = node.periodic_every_s if asked.every_s is None else asked.every_s
        schedule = Schedule(
            **place, exclude=asked.exclude, incarnation=asked.incarnation, every_s=float(every_s)
        )
        await node.periodic.put(workspace, schedule)
        return web.json_response(_schedule(schedule))

    async def delete_schedule(self, request: web.Request) -> web.Response:
        await self._node.periodic.remove(self._workspace(request))
        return web.Response(status=204)

    async def list_schedules(self, request: web.Request) -> web.Response:
        owner = request[OWNER]
        found = self._node.periodic.all().items()
        shown = [_schedule(one) for workspace, one in found if owner in {ANY, workspace.owner}]
        return web.json_response({"schedules": shown})

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

    async def link(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        expires_s = parse_expiry(request.query.get("expires_s"))
        snapshot = await Catalog(self._node.store, workspace).snapshot(request.match_info["snapshot_id"])
        if (signer := presigner(self._node.store)) is not None:
            name = f"{workspace.id}-{snapshot.id}.tar"
            url = await signer.presign(snapshot.tar_key, expires_s=expires_s, file_name=name)
        else:
            path = f"{DOWNLOADS}/{workspace}/{snapshot.id}.tar"
            end_s = int(self._node.clock.time()) + expires_s
            url = str(request.url.origin()) + self._node.links.sign(path, end_s)
        return web.json_response({"url": url, "expires_s": expires_s, "bytes": snapshot.tar_bytes})

    async def download(self, request: web.Request) -> web.StreamResponse:
        """What an address of our own leads to."""
        query, node = request.query, self._node
        node.links.check(
            request.path, query.get("expires", ""), query.get("signature", ""), node.clock.time()
        )
        workspace = Workspace.parse(f"{request.match_info['owner']}/{request.match_info['id']}")
        snapshot = await Catalog(node.store, workspace).snapshot(request.match_info["snapshot_id"])
        name = f"{workspace.id}-{snapshot.id}.tar"
        headers = {
            "Content-Type": "application/x-tar",
            "Content-Length": str(snapshot.tar_bytes),
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        }
        async with node.store.open(snapshot.tar_key) as reader:
            if reader.info.size_bytes != snapshot.tar_bytes:
                raise ObjectCorrupt(snapshot.tar_key, "it is not as long as it was when it was committed")
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            pieces: list[bytes] = []
            while await reader.pour(pieces.append, _PIECE_BYTES):
                await response.write(b"".join(pieces))
                pieces.clear()
        return response

    async def safety(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        place = await self._place(request, workspace, request.query.get("path"))
        tree = Path(place["path"])
        answer = await safe_to_delete(node.store, Catalog(node.store, workspace), tree)
        return web.json_response(dataclasses.asdict(answer))

    async def show_node(self, _request: web.Request) -> web.Response:
        node = self._node
        states = Counter(job.state for job in node.jobs.jobs())
        return web.json_response(
            {
                "ready": not node.readiness.reasons,
                "reasons": node.readiness.reasons,
                "free_bytes": node.disk.free_bytes,
                "jobs_running": states["running"],
                "jobs_queued": states["queued"],
                "periodic_workspaces": len(node.periodic.all()),
                "disk_held_to_share": node.buckets.held.share,
                "disk_held_to_bytes_s": node.buckets.held.write_bytes_s,
            }
        )

    async def show_io_limits(self, request: web.Request) -> web.Response:
        return web.json_response(_held(self._node.limits.get(self._workspace(request))))

    async def put_io_limits(self, request: web.Request) -> web.Response:
        """Of the workspace's own cgroup; for the node's keeper only."""
        workspace = self._workspace(request)
        require_owner(request, ANY)
        held = parse_io_limits(await read_fields(request))
        await self._node.limits.apply(workspace, held)
        return web.json_response(_held(held))

    async def clear_io_limits(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        require_owner(request, ANY)
        await self._node.limits.clear(workspace)
        return web.Response(status=204)

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


def _held(held: Held) -> dict[str, Any]:
    return {"cgroup": held.cgroup, **dataclasses.asdict(held.limits)}


def _schedule(schedule: Schedule) -> dict[str, Any]:
    shown = ("workspace", "path", "exclude", "incarnation", "every_s")
    return {name: getattr(schedule, name) for name in shown}


def _rates(buckets: Buckets) -> web.Response:
    return web.json_response({RATE_FIELDS[way]: getattr(buckets.rates, way) for way in WAYS})
