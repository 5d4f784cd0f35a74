"""The pull half of the distribution API: from a request to what answers it."""

from dataclasses import dataclass

import structlog
from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import OciError
from registry_facade.access import PULL_FIELDS
from registry_facade.addressing import Endpoint, Target, choose_target, parse_endpoint
from registry_facade.composing import Composer
from registry_facade.listing import referrers_response, tags_response
from registry_facade.local.handlers import LocalHandlers
from registry_facade.locating import Locator
from registry_facade.manifests import FoundManifest, Manifests
from registry_facade.metrics import FacadeMetrics
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

_log = structlog.get_logger(__name__)
_PULL = "GET, HEAD"


@dataclass(frozen=True)
class PullHandlers:
    """Everything below ``/v2/`` that reads."""

    upstreams: frozenset[str]
    default_upstream: str
    manifests: Manifests
    composer: Composer
    cache: ReadThrough
    locator: Locator
    metrics: FacadeMetrics
    local: LocalHandlers | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/v2", self.base), web.route("*", "/v2/{path:(?s:.*)}", self.serve)]

    async def base(self, request: web.Request) -> web.StreamResponse:
        """distribution-spec v1.1, "Determining Support"."""
        if request.method not in {"GET", "HEAD"}:
            return not_allowed(_PULL)
        return web.json_response({}, headers=API_VERSION)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/":
            return await self.base(request)
        try:
            if self.local is not None and self.local.owns(request.path):
                return await self.local.serve(request)
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
            return await self._dispatch(request, endpoint, target)
        except OciError as error:
            _log.info("refused", path=request.path, reason=str(error), kind=type(error).__name__)
            return error_response(error)

    async def _dispatch(self, request: web.Request, endpoint: Endpoint, target: Target) -> web.StreamResponse:
        match endpoint.kind, endpoint.reference:
            case "manifests", reference:
                return await self.manifest(request, target, reference)
            case "blobs", Digest() as digest:
                return await self.blob(request, target, digest)
            case "referrers", Digest() as digest:
                return await self.referrers(request, target, digest)
            case _:
                return await self.tags(request, target, endpoint.name)

    async def manifest(
        self, request: web.Request, target: Target, reference: str | Digest
    ) -> web.StreamResponse:
        if target.is_composed:
            found = FoundManifest(await self.composer.manifest(target.repository, reference))
        else:
            found = await self.manifests.get(target, reference)
        request[PULL_FIELDS].update(digest=found.raw.digest, stale=found.stale)
        return manifest_response(request, found.raw, target.namespace, stale=found.stale)

    async def blob(self, request: web.Request, target: Target, digest: Digest) -> web.StreamResponse:
        if matches(request.headers.get("If-None-Match"), digest):
            return web.Response(status=304, headers=content_headers(digest, BLOB_TYPE, target.namespace))
        if request.method == "HEAD":
            return await self._blob_head(target, digest)
        asked = asked_ranges(request, digest)
        start = max(0, asked[0].start) if asked else 0
        async with self.cache.open(digest, self._locate(target, digest), start=start) as blob:
            chosen = plan(asked, blob.size)
            sender = BlobSender(request, self.metrics)
            self.metrics.blob_requests.labels(blob.served_from).inc()
            try:
                return await sender.send(digest, blob, chosen, target.namespace)
            finally:
                self.metrics.served_bytes.labels(blob.served_from).inc(sender.sent_bytes)
                request[PULL_FIELDS].update(source=blob.served_from, sent_bytes=sender.sent_bytes)

    def _locate(self, target: Target, digest: Digest) -> Locate:
        if not target.is_composed:
            return lambda: self.locator.locate(target, digest)
        return lambda: self.locator.locate(
            target, digest, prepare=lambda: self.composer.prepare(target.repository)
        )

    async def _blob_head(self, target: Target, digest: Digest) -> web.StreamResponse:
        size = await self.cache.stat(digest, self._locate(target, digest))
        headers = content_headers(digest, BLOB_TYPE, target.namespace)
        return web.Response(headers={**headers, "Accept-Ranges": "bytes", "Content-Length": str(size)})

    async def tags(self, request: web.Request, target: Target, name: str) -> web.StreamResponse:
        every = ["latest"] if target.is_composed else await self.manifests.tags(target)
        return tags_response(request, name, every, target.namespace)

    async def referrers(self, request: web.Request, target: Target, digest: Digest) -> web.StreamResponse:
        if target.is_composed:
            index = await self.composer.referrers(target.repository, digest)
        else:
            index = await self.manifests.referrers(target, digest)
        return referrers_response(request, index, target.namespace)
