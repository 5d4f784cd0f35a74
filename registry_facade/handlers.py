"""The pull half of the distribution API: from a request to what answers it."""

import time
from dataclasses import dataclass

import structlog
from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import OciError
from registry_facade.access import PULL_FIELDS
from registry_facade.addressing import Endpoint, Target, choose_target, parse_endpoint
from registry_facade.errors import CallerUnknown
from registry_facade.listing import referrers_response, tags_response
from registry_facade.local.handlers import LocalHandlers
from registry_facade.metrics import FacadeMetrics
from registry_facade.pull_events import Pull, PullEvents
from registry_facade.pulls import Pulls
from registry_facade.responses import (
    API_VERSION,
    content_headers,
    error_response,
    json_error,
    manifest_response,
    matches,
    not_allowed,
)
from registry_facade.sources.read_through import Locate, ReadThrough
from registry_facade.streaming import BLOB_TYPE, BlobSender, asked_ranges, plan
from registry_facade.tenancy.callers import ANONYMOUS, Caller
from registry_facade.tenancy.gate import Gate

_log = structlog.get_logger(__name__)
_PULL = "GET, HEAD"


@dataclass(frozen=True)
class PullHandlers:
    """Everything below ``/v2/`` that reads; without a ``gate`` for everybody."""

    upstreams: frozenset[str]
    default_upstream: str
    pulls: Pulls
    cache: ReadThrough
    metrics: FacadeMetrics
    events: PullEvents
    local: LocalHandlers | None = None
    gate: Gate | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/v2", self.base), web.route("*", "/v2/{path:(?s:.*)}", self.serve)]

    async def base(self, request: web.Request) -> web.StreamResponse:
        """distribution-spec v1.1, "Determining Support"; here clients learn whether to log in."""
        if request.method not in {"GET", "HEAD"}:
            return not_allowed(_PULL)
        header = request.headers.get("Authorization")
        if self.gate is not None:
            if header is None:
                return error_response(CallerUnknown())
            try:
                await self.gate.identify(header)
            except CallerUnknown as error:
                return error_response(error)
        return web.json_response({}, headers=API_VERSION)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/":
            return await self.base(request)
        try:
            return await self._serve(request)
        except OciError as error:
            _log.info("refused", path=request.path, reason=str(error), kind=type(error).__name__)
            return error_response(error, request.path)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        caller = ANONYMOUS if self.gate is None else await self._caller(request, self.gate)
        if self.local is not None and self.local.owns(request.path):
            return await self.local.serve(request, lambda name, push: self._permit(caller, name, push=push))
        endpoint = parse_endpoint(request.path)
        if endpoint is None:
            return json_error(404, "NAME_UNKNOWN", "no such path in this registry")
        if request.method not in {"GET", "HEAD"}:
            return not_allowed(_PULL)
        namespace = request.query.get("ns", "")
        target = choose_target(endpoint.name, namespace, self.upstreams, self.default_upstream)
        request[PULL_FIELDS].update(
            kind=endpoint.kind,
            upstream=target.upstream,
            repository=target.repository,
            reference=endpoint.reference,
        )
        pull, failed = self.events.begin(request.remote or "", caller.name, target), True
        try:
            response = await self._dispatch(request, endpoint, target, caller, pull)
            failed = False
            return response
        finally:
            pull.end(failed=failed)

    async def _caller(self, request: web.Request, gate: Gate) -> Caller:
        caller = await gate.identify(request.headers.get("Authorization"))
        request[PULL_FIELDS]["caller"] = caller.name
        return caller

    def _permit(self, caller: Caller, name: str, *, push: bool) -> None:
        if self.gate is None:
            return
        if push:
            self.gate.check_push(caller, name)
        else:
            upstream, _, repository = name.partition("/")
            self.gate.check_covered(caller, Target(upstream, repository), "")

    async def _dispatch(
        self, request: web.Request, endpoint: Endpoint, target: Target, caller: Caller, pull: Pull
    ) -> web.StreamResponse:
        match endpoint.kind, endpoint.reference:
            case "manifests", reference:
                return await self._manifest(request, target, reference, caller, pull)
            case "blobs", Digest() as digest:
                via = await self.gate.blob(caller, target, digest) if self.gate is not None else None
                locate = self.pulls.locate(target, digest, via)
                return await self._blob(request, target, digest, locate, pull)
            case "referrers", Digest() as digest:
                if self.gate is not None:
                    index = await self.gate.referrers(caller, target, digest)
                else:
                    index = await self.pulls.referrers(target, digest)
                return referrers_response(request, index, target.namespace)
            case _:
                if self.gate is not None:
                    every = await self.gate.tags(caller, target)
                else:
                    every = await self.pulls.tags(target)
                return tags_response(request, endpoint.name, every, target.namespace)

    async def _manifest(
        self, request: web.Request, target: Target, reference: str | Digest, caller: Caller, pull: Pull
    ) -> web.StreamResponse:
        if self.gate is not None:
            found = await self.gate.manifest(caller, target, reference)
        else:
            found = await self.pulls.manifest(target, reference)
        pull.found(reference, found)
        request[PULL_FIELDS].update(digest=found.raw.digest, stale=found.stale)
        return manifest_response(request, found.raw, target.namespace, stale=found.stale)

    async def _blob(
        self, request: web.Request, target: Target, digest: Digest, locate: Locate, pull: Pull
    ) -> web.StreamResponse:
        if matches(request.headers.get("If-None-Match"), digest):
            return web.Response(status=304, headers=content_headers(digest, BLOB_TYPE, target.namespace))
        if request.method == "HEAD":
            return await self._blob_head(target, digest, locate)
        asked, started_s = asked_ranges(request, digest), time.perf_counter()
        start = max(0, asked[0].start) if asked else 0
        async with self.cache.open(digest, locate, start=start) as blob:
            chosen = plan(asked, blob.size)
            sender = BlobSender(request, self.metrics, started_s)
            self.metrics.blob_requests.labels(blob.served_from).inc()
            try:
                return await sender.send(digest, blob, chosen, target.namespace)
            finally:
                self.metrics.served_bytes.labels(blob.served_from).inc(sender.sent_bytes)
                pull.sent(digest, blob.served_from, sender.sent_bytes, sender.waited_s)
                request[PULL_FIELDS].update(source=blob.served_from, sent_bytes=sender.sent_bytes)

    async def _blob_head(self, target: Target, digest: Digest, locate: Locate) -> web.StreamResponse:
        size = await self.cache.stat(digest, locate)
        headers = content_headers(digest, BLOB_TYPE, target.namespace)
        return web.Response(headers={**headers, "Accept-Ranges": "bytes", "Content-Length": str(size)})
